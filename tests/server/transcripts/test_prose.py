"""The Markdown of agents as HTML: what is rendered, and what cannot get out."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.server.transcripts.html import render_prose as prose

VOID = {"hr", "br", "img", "meta"}
ALLOWED = {
    "p",
    "br",
    "pre",
    "code",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "blockquote",
    "hr",
    "a",
    "strong",
    "em",
    "s",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}
STYLES = {"text-align:left", "text-align:center", "text-align:right"}


class Checker(HTMLParser):
    """Fails at tags and attributes that are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            allowed = {("a", "href"), ("a", "rel"), ("ol", "start"), ("code", "class")}
            assert (tag, name) in allowed or (name == "style" and tag in {"th", "td"} and value in STYLES)
            if name == "href":
                assert value is not None
                self.links.append(value)
                assert value.startswith(("http://", "https://", "mailto:"))

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.open

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(prose(text))
    checker.close()
    return checker


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b** *c* `d`", "<p>a <strong>b</strong> <em>c</em> <code>d</code></p>"),
        ("one\ntwo\n\nthree", "<p>one<br>\ntwo</p>\n<p>three</p>"),
        ("# Title #", "<h4>Title</h4>"),
        ("- a\n- b\n  c", "<ul>\n<li>a</li>\n<li>b<br>\nc</li>\n</ul>"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>'),
        ("> q", "<blockquote>\n<p>q</p>\n</blockquote>"),
        ("```py\na < b\n```\nx", '<pre><code class="language-py">a &lt; b\n</code></pre>\n<p>x</p>'),
        ("```\nnever closed", "<pre><code>never closed</code></pre>"),
        ("````\n```\n````", "<pre><code>```\n</code></pre>"),
        ("`<b>`", "<p><code>&lt;b&gt;</code></p>"),
        ("a * b * c", "<p>a * b * c</p>"),
        ("snake_case_name", "<p>snake_case_name</p>"),
        (
            "| a | b |\n|---|--:|\n| 1 | 2 |",
            (
                "<table>\n<thead>\n<tr>\n<th>a</th>\n"
                '<th style="text-align:right">b</th>\n</tr>\n</thead>\n<tbody>\n<tr>\n<td>1</td>\n'
                '<td style="text-align:right">2</td>\n</tr>\n</tbody>\n</table>'
            ),
        ),
        (
            "- a\n  - b\n    1. c\n- d",
            "<ul>\n<li>a\n<ul>\n<li>b\n<ol>\n<li>c</li>\n</ol>\n</li>\n</ul>\n</li>\n<li>d</li>\n</ul>",
        ),
        ("~~a~~", "<p><s>a</s></p>"),
        ("Title\n===", "<h4>Title</h4>"),
        ("![a](https://a.example/b.png)", None),
        ("---", "<hr>"),
        ("", ""),
    ],
)
def test_markdown_is_rendered(text: str, html: str | None):
    check(text)
    if html is not None:
        assert prose(text) == html


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("see [this](https://a.example/x?y=1&z=2)", ["https://a.example/x?y=1&z=2"]),
        ("see https://a.example/x.", ["https://a.example/x"]),
        ("see <https://a.example/x?y=1&z=2>", ["https://a.example/x?y=1&z=2"]),
        ("write to <me@a.example>", ["mailto:me@a.example"]),
        ("**https://a.example/_x/y** (https://b.example)", ["https://a.example/_x/y", "https://b.example"]),
        ("xhttps://a.example file:///etc `https://a.example`", []),
        ("<javascript:alert(1)>", []),
        ("![x](https://a.example/x.png)", ["https://a.example/x.png"]),
        ("[mail](mailto:a@b.example)", ["mailto:a@b.example"]),
        ("[x](javascript:alert(1))", []),
        ("[x](JAVASCRIPT:alert(1))", []),
        ("[x](data:text/html,<script>)", []),
        ("[x](//a.example)", []),
        ("[https://a.example](https://b.example)", ["https://b.example"]),
    ],
)
def test_only_web_and_mail_addresses_become_links(text: str, links: list[str]):
    assert check(text).links == links


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</script></style></title><img src=x onerror=alert(1)>",
        '[x](https://a.example/"onmouseover="alert(1))',
        "[x](https://a.example/'onmouseover='alert(1))",
        'https://a.example/"><script>',
        "```html\n</code></pre><script>\n```",
        "`</code><script>`",
        "[`<script>`](https://a.example/`x`)",
        "\x000\x00 `a` \x001\x00",
        "# <img src=x>",
        "- <b onclick=x>",
        "<!-- hidden",
        "&lt;script&gt; &#x3c;script&#x3e;",
    ],
)
def test_no_markup_of_the_agents_gets_through(text: str):
    check(text)
    assert "<script" not in prose(text)
    assert "<img" not in prose(text)


def test_html_is_shown_as_text():
    assert prose("a <b>c</b>\n\n<div>\n*x*\n</div>") == (
        "<p>a &lt;b&gt;c&lt;/b&gt;</p>\n<p>&lt;div&gt;<br>\n<em>x</em><br>\n&lt;/div&gt;</p>"
    )


def test_a_very_long_text_is_shown_as_it_is():
    text = "**a** <b>\r\n" * 100_000
    assert (
        prose(text)
        == f"<pre>{'**a** &lt;b&gt;' + chr(13) + chr(10)}" + "**a** &lt;b&gt;\r\n" * 99_999 + "</pre>"
    )


@given(st.text(alphabet="<>&\"'`*[]()#-+.:/\n\r\x00 ab1|~_htps", max_size=200))
def test_every_text_is_rendered_with_our_tags_only(text: str):
    check(text)


@pytest.mark.parametrize(
    "text",
    ["`" * 50_000, "[" * 50_000, "*" * 50_000, "# " + "# " * 50_000 + "x", "> " * 50_000, "**a " * 20_000,
     "`a``" * 20_000, "\n" * 50_000, "- \n" * 20_000, "https://" * 20_000, "|" * 50_000,
     "[a](http://" * 10_000,
     "1. " * 30_000, "![[" * 20_000, "<a" * 20_000, "|a" * 20_000 + "\n" + "|-" * 20_000,
     "[a]: <" * 10_000, "~~a" * 20_000, "http://a/" * 10_000, "h://" * 20_000, "- a\n  " * 10_000,
     " " * 50_000 + "x", "*a" * 30_000, "~~~\n" * 20_000],
)  # fmt: skip
def test_no_text_takes_more_than_its_length(text: str):
    begun = time.process_time()
    prose(text)
    assert time.process_time() - begun < 5
