"""Transcripts of recorded sessions against golden files, and of events that mean harm."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sandbox_agent.server.transcripts.export import render_end, render_events
from sandbox_agent.server.transcripts.html import HtmlRenderer
from sandbox_agent.server.transcripts.markdown import MarkdownRenderer, contained, fenced, inline
from sandbox_agent.server.transcripts.templating import TemplateRenderer as Renderer
from sandbox_agent.server.transcripts.transcript_builder import TranscriptBuilder
from sandbox_agent.wire.sessions import SessionInfo, UsageInfo
from sandbox_agent.wire.universal import encode_event
from tests.engine.test_project_traffic import project

GOLDEN = Path(__file__).parent / "golden"
EVIL = "</script></style></title></details></pre>--><img src=x onerror=alert(1)>\"'><b>&"


def info(**values: Any) -> SessionInfo:
    made = SessionInfo(
        session_id="s-1",
        agent="mock",
        agent_mode="code",
        permission_mode="ask",
        ended=False,
        event_count=3,
        created_at=1_795_000_000_000,
        updated_at=1_795_000_100_000,
        managed=True,
        title="A title",
        usage=UsageInfo(input_tokens=1200, output_tokens=34, cost={"USD": 0.25}),
    )
    return msgspec.structs.replace(made, **values)


def render(renderer: Renderer, info: SessionInfo, pages: Iterable[Sequence[bytes]]) -> Iterator[str]:
    builder = TranscriptBuilder()
    yield from renderer.begin(info)
    for page in pages:
        yield from render_events(renderer, builder, page)
    yield from render_end(renderer, builder)


class Script:
    """Builds events one after another."""

    def __init__(self) -> None:
        self.events: list[bytes] = []

    def add(self, kind: str, data: Any, *, sequence: int | None = None) -> Script:
        number = sequence or len(self.events) + 1
        event = {
            "event_id": f"e{number}",
            "sequence": number,
            "time": "2026-11-18T11:06:41.353Z",
            "session_id": "s-1",
            "source": "agent",
            "synthetic": False,
            "type": kind,
            "data": data,
        }
        self.events.append(msgspec.json.encode(event))
        return self

    def item(
        self, kind: str, content: list[Any], *, role: str = "assistant", state: str = "completed", **more: Any
    ) -> Script:
        status = more.pop("status", "completed" if state == "completed" else "in_progress")
        item = {"item_id": "i", "kind": kind, "content": content, "status": status, "role": role, **more}
        return self.add(f"item.{state}", {"item": item})

    def text(self, renderer: Renderer) -> str:
        return "".join(render(renderer, info(), [self.events]))


def said(text: str, role: str = "assistant") -> Script:
    return Script().item("message", [{"type": "text", "text": text}], role=role)


@pytest.mark.parametrize("agent", ["claude", "qwen", "codex"])
@pytest.mark.parametrize(("renderer", "suffix"), [(MarkdownRenderer, "md"), (HtmlRenderer, "html")])
def test_a_recorded_session_reads_as_before(agent: str, renderer: type[Renderer], suffix: str):
    events = [encode_event(event) for event in project(agent)]
    text = "".join(render(renderer(), info(session_id=agent, title=None), [events[:7], events[7:]]))
    golden = GOLDEN / f"{agent}.{suffix}"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("renderer", [MarkdownRenderer(), HtmlRenderer()])
@pytest.mark.parametrize("agent", ["claude", "codex", "copilot", "gemini", "goose", "opencode", "pi", "qwen"])
def test_a_transcript_does_not_depend_on_its_pages(agent: str, renderer: Renderer):
    events = [encode_event(event) for event in project(agent)]
    whole = "".join(render(renderer, info(), [events]))
    assert whole == "".join(render(renderer, info(), [[event] for event in events]))


class Page(HTMLParser):
    """Fails at what could run or load, and at elements that are closed by what was said."""

    VOID = frozenset({"meta", "hr", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.shown: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "iframe", "object", "embed", "link", "form", "base", "svg", "b" * 9}
        if tag not in self.VOID:
            self.stack.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "src":
                assert value is not None
                assert value.startswith("data:image/")
            if name == "href":
                assert value is not None
                assert value.startswith(("http://", "https://", "mailto:"))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


def check_page(html: str) -> str:
    page = Page()
    page.feed(html)
    page.close()
    assert page.stack == []
    return "".join(page.shown)


def evil_script() -> Script:
    script = Script()
    parts = [
        {"type": "text", "text": EVIL},
        {"type": "reasoning", "text": EVIL, "visibility": "public"},
        {"type": "json", "json": {EVIL: EVIL}},
        {"type": "file_ref", "path": EVIL, "action": "patch", "diff": f"+{EVIL}\n-{EVIL}\n@@ {EVIL}"},
        {"type": "image", "path": f"data:image/png;base64,AA{EVIL}", "mime": EVIL},
        {"type": "image", "path": f"javascript:alert(1)//{EVIL}"},
        {"type": "status", "label": EVIL, "detail": EVIL},
        {"type": "tool_call", "name": EVIL, "arguments": f'{{"a": "{EVIL[:5]}"}}', "call_id": EVIL},
        {"type": "tool_result", "call_id": EVIL, "output": EVIL},
    ]
    script.add("session.started", {"metadata": EVIL})
    script.add("turn.started", {"phase": "started", "turn_id": EVIL})
    for role in ("user", "assistant", "system", "tool"):
        script.item("message", parts, role=role)
    script.item("tool_call", parts)
    script.item("tool_result", parts, parent_id="i")
    script.item("status", parts)
    script.item("status", [{"type": "status", "label": "plan", "detail": f"[x] {EVIL}\n{EVIL}\n[~] a"}])
    script.add("permission.requested", {"permission_id": "p", "action": EVIL, "status": "requested"})
    script.add(
        "permission.resolved",
        {"permission_id": "p", "action": EVIL, "status": "reject", "metadata": {"answered_by": EVIL}},
    )
    script.add(
        "question.requested", {"question_id": "q", "prompt": EVIL, "options": [EVIL], "status": "requested"}
    )
    script.add("error", {"message": EVIL, "code": EVIL, "details": {EVIL: [EVIL]}})
    script.add("agent.unparsed", {"error": EVIL, "location": EVIL})
    script.add("something.new", {EVIL: EVIL})
    metadata = {"stop_reason": EVIL, "reason": EVIL, "usage": {"inputTokens": EVIL}}
    script.add("turn.ended", {"phase": "ended", "metadata": metadata})
    return script.add("session.ended", {"reason": "error", "terminated_by": "agent", "message": EVIL})


def test_nothing_that_was_said_becomes_markup_of_the_page():
    html = "".join(
        render(HtmlRenderer(), info(title=EVIL, model=EVIL, directory=EVIL), [evil_script().events])
    )
    shown = check_page(html)
    assert EVIL in shown
    assert "<img" not in html
    assert html.count("</html>") == 1


def test_the_page_asks_for_nothing_from_anywhere():
    html = evil_script().text(HtmlRenderer())
    head = html[: html.index("<body>")]
    assert "default-src 'none'" in head
    assert not re.search(r"url\(|@import|<link|<script|src=", head)
    assert "prefers-color-scheme: dark" in head


def test_an_embedded_image_is_shown_and_another_one_is_not_loaded():
    script = Script().item(
        "message",
        [
            {"type": "image", "path": "data:image/png;base64,iVBORw0KGgo="},
            {"type": "image", "path": "https://x/y.png"},
        ],
    )
    html = script.text(HtmlRenderer())
    assert html.count("<img") == 1
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in html


def test_a_diff_is_coloured_line_by_line():
    part = {"type": "file_ref", "path": "/a", "action": "patch", "diff": "@@ -1 +1 @@\n-old\n+new\n same\n"}
    html = Script().item("message", [part]).text(HtmlRenderer())
    for kind, line in (("hunk", "@@ -1 +1 @@"), ("del", "-old"), ("add", "+new")):
        assert f'<span class="{kind}">{line}</span>' in html


@pytest.mark.parametrize(
    "text",
    ["```\nopen", "- ```\n  open", "~~~~\n```\n~~~~\n```", "a\r```\rb", "<!-- hidden", "<script>\nx",
     "# User",
     "1. x\n   ```sh\n   ls\n   ```\ny", ">>> ```", "<details>\n\nx"],
)  # fmt: skip
def test_a_message_ends_where_it_ends_in_markdown(text: str):
    script = said(text)
    script.item("message", [{"type": "text", "text": "the next"}])
    lines = script.text(MarkdownRenderer()).split("\n")
    assert open_fence(lines[: lines.index("the next")]) == ""
    headings = [line for line in lines if re.match(r"#{1,3} ", line)]
    assert headings == ["# A title", "### Agent", "### Agent"]
    assert not [line for line in lines if re.match(r" {0,3}<", line)]


def open_fence(lines: list[str]) -> str:
    """Return the fence that is open after the lines, outside of quotes."""
    fence = ""
    for line in lines:
        found = re.match(r" {0,3}(`{3,}|~{3,})(.*)", line)
        if not found:
            continue
        if not fence:
            fence = found[1]
        elif found[1].startswith(fence) and not found[2].strip():
            fence = ""
    return fence


@pytest.mark.parametrize("text", ["plain", "```", "`````\n```", "a\r\n```\rb", "", "\n\n"])
def test_a_fence_can_not_be_broken_by_what_it_holds(text: str):
    block = fenced(text, "sh").rstrip("\n").split("\n")
    fence = block[0].removesuffix("sh")
    assert block[-1] == fence
    assert not [line for line in block[1:-1] if line.startswith(fence)]
    assert "\r" not in "".join(block)


def test_text_in_a_line_has_no_markup():
    assert inline("a\n# b `c` [d](e) <f>") == r"a \# b \`c\` \[d\](e) \<f\>"


def test_headings_of_an_agent_stand_below_those_of_the_transcript():
    assert contained("# a\n## b\n#### c\n```\n# d\n```") == "#### a\n##### b\n###### c\n```\n# d\n```\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <b>c</b> d", r"a \<b>c\</b> d"),
        ("see <https://a.example> and `<b>`", "see <https://a.example> and `<b>`"),
        ("<div>\n<img src=x>\n</div>", "\\<div>\n\\<img src=x>\n\\</div>"),
        ("a\n<img\nsrc=x>", "a\n\\<img\nsrc=x>"),
        ("1 < 2 && 3 > 2", "1 < 2 && 3 > 2"),
        ("```html\n<b>\n```", "```html\n<b>\n```"),
        ("Title\n===\n\nSub\ntitle\n---\nx", "#### Title\n\n\n##### Sub title\n\n\nx"),
        ("| a |\n|---|\n| b |", "| a |\n|---|\n| b |"),
        ("- a\n  - b\n\n    c", "- a\n  - b\n\n    c"),
    ],
)
def test_markdown_of_an_agent_has_no_html_and_keeps_the_rest(text: str, shown: str):
    assert contained(text) == shown + "\n"


@given(st.text(alphabet="<>/b!-?`~#=\n\r\\ a", max_size=80))
def test_no_html_gets_through_as_markdown(text: str):
    for quote in (False, True):
        tokens = MarkdownIt("commonmark").parse(contained(text, quote=quote))
        kinds = {token.type for token in tokens} | {
            child.type for each in tokens for child in each.children or ()
        }
        assert not kinds & {"html_block", "html_inline"}


@pytest.mark.parametrize("text", ["`" * 300_000, "a" * 400_000 + "```\n", "\r\n" * 200_000])
def test_a_very_long_text_is_a_code_block(text: str):
    lines = contained(text).rstrip("\n").split("\n")
    assert lines[0] == lines[-1]
    assert set(lines[0]) == {"`"}
    assert not [line for line in lines[1:-1] if line.startswith(lines[0])]


def test_an_item_that_was_never_completed_is_shown_from_its_deltas():
    script = Script().add("turn.started", {"phase": "started", "turn_id": "t"})
    script.item("message", [{"type": "text", "text": ""}], state="started")
    script.add("item.delta", {"item_id": "i", "delta": "half a "})
    script.add("item.delta", {"item_id": "i", "delta": "sentence"})
    text = script.text(MarkdownRenderer())
    assert "### Agent (not finished)\n\nhalf a sentence\n" in text


def test_a_completed_item_is_shown_once():
    script = Script().item("message", [{"type": "text", "text": ""}], state="started")
    script.add("item.delta", {"item_id": "i", "delta": "whole"})
    script.item("message", [{"type": "text", "text": "whole"}])
    assert script.text(MarkdownRenderer()).count("whole") == 1


def test_a_message_stands_where_it_began_though_it_ended_behind_a_call():
    script = Script().add("turn.started", {"phase": "started", "turn_id": "t"})
    script.item("message", [{"type": "text", "text": ""}], state="started")
    script.add("item.delta", {"item_id": "i", "delta": "Let me do that."})
    script.item(
        "tool_call", [{"type": "tool_call", "name": "Call", "arguments": "{}", "call_id": "c"}], item_id="c"
    )
    script.item("tool_result", [], parent_id="c", item_id="r")
    script.item("message", [{"type": "text", "text": "Let me do that."}])
    script.add("turn.ended", {"phase": "ended", "turn_id": "t"})
    text = script.text(MarkdownRenderer())
    assert text.index("Let me do that.") < text.index("Tool: Call") < text.index("Turn ended")
    assert text.count("Let me do that.") == 1


@pytest.mark.parametrize("renderer", [HtmlRenderer, MarkdownRenderer])
def test_a_beginning_that_is_not_kept_is_said(renderer: type[Renderer]):
    script = Script().add("error", {"message": "boom"}, sequence=9)
    text = "".join(render(renderer(), info(), [script.events]))
    assert "Events 1 to 8 are not stored any more." in text


def test_a_gap_is_said():
    script = Script().add("session.started", {}, sequence=1)
    script.add("error", {"message": "boom"}, sequence=9)
    assert "Events 2 to 8 are not stored any more" in script.text(MarkdownRenderer())


def test_an_answer_says_whose_it_was_and_one_that_is_due_that_it_is():
    script = Script().add(
        "permission.resolved",
        {"permission_id": "p", "action": "Write a", "status": "accept", "metadata": {"answered_by": "ann"}},
    )
    script.add("permission.requested", {"permission_id": "q", "action": "Write b", "status": "requested"})
    text = script.text(MarkdownRenderer())
    assert "**Permission:** Write a — allowed once by ann" in text
    assert "**Permission:** Write b — waits for an answer" in text


def test_an_event_that_can_not_be_read_is_said_and_the_rest_goes_on():
    script = said("after")
    script.events.insert(0, b"{not json")
    script.events.insert(0, b"{}")
    text = script.text(MarkdownRenderer())
    assert text.count("an event can't be read") == 2
    assert "after" in text


def test_a_lone_surrogate_ends_no_export():
    text = said("x").events[0].replace(b'"text":"x"', rb'"text":"\ud800"')
    assert "".join(render(MarkdownRenderer(), info(), [[text]])).encode("utf-8", "replace")


def test_the_page_shows_tokens_and_cost():
    shown = check_page(said("x").text(HtmlRenderer()))
    assert "1,200 input, 34 output" in shown
    assert "0.2500 USD" in shown
