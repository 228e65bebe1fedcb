"""The Markdown of agents as HTML: what is set, and what can't get out."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.server.transcripts.prose import prose

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
}


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
            assert (tag, name) in {("a", "href"), ("a", "rel"), ("ol", "start")}
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
        ("- a\n- b\n  c", "<ul><li>a</li><li>b<br>\nc</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> q", "<blockquote><p>q</p></blockquote>"),
        ("```py\na < b\n```\nx", "<pre><code>a &lt; b</code></pre>\n<p>x</p>"),
        ("```\nnever closed", "<pre><code>never closed</code></pre>"),
        ("````\n```\n````", "<pre><code>```</code></pre>"),
        ("`<b>`", "<p><code>&lt;b&gt;</code></p>"),
        ("a * b * c", "<p>a * b * c</p>"),
        ("snake_case_name", "<p>snake_case_name</p>"),
        ("| a | b |\n|---|---|", "<pre>| a | b |\n|---|---|</pre>"),
        ("---", "<hr>"),
        ("", ""),
    ],
)
def test_markdown_is_set(text: str, html: str):
    assert prose(text) == html


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("see [this](https://a.example/x?y=1&z=2)", ["https://a.example/x?y=1&z=2"]),
        ("see https://a.example/x.", ["https://a.example/x."]),
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


@given(st.text(alphabet="<>&\"'`*[]()#-+.:/\n\r\x00 ab1|~_htps", max_size=200))
def test_whatever_is_written_only_our_tags_come_out(text: str):
    check(text)


@pytest.mark.parametrize(
    "text",
    ["`" * 50_000, "[" * 50_000, "*" * 50_000, "# " + "# " * 50_000 + "x", "> " * 50_000, "**a " * 20_000,
     "`a``" * 20_000, "\n" * 50_000, "- \n" * 20_000, "https://" * 20_000, "|" * 50_000,
     "[a](http://" * 10_000,
     "1. " * 30_000, " " * 50_000 + "x", "*a" * 30_000, "~~~\n" * 20_000],
)  # fmt: skip
def test_no_text_takes_more_than_its_length(text: str):
    begun = time.process_time()
    prose(text)
    assert time.process_time() - begun < 5
