"""What notebooks show of events: everything that an agent sends is text there."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from sandbox_agent import SessionEvent, Transcript

EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(1)> [x](javascript:alert(1)) ![y](http://evil/y) \"'&"
)


def event(payload: dict[str, Any], sender: Any = "agent") -> SessionEvent:
    return SessionEvent("e", 1, "s", 0, "c", sender, json.dumps({"jsonrpc": "2.0", **payload}).encode())


def update(kind: str, /, **fields: Any) -> SessionEvent:
    params = {"sessionId": "s", "update": {"sessionUpdate": kind, **fields}}
    return event({"method": "session/update", "params": params})


def said(text: str, kind: str = "agent_message_chunk") -> SessionEvent:
    return update(kind, content={"type": "text", "text": text})


def prompted(text: str) -> SessionEvent:
    params = {"sessionId": "s", "prompt": [{"type": "text", "text": text}]}
    return event({"id": 1, "method": "session/prompt", "params": params}, "client")


def html_of(shown: Any) -> str:
    """Return what a notebook asks for."""
    return str(shown._repr_html_())


def markdown_of(shown: Any) -> str:
    return str(shown._repr_markdown_())


class _Reader(HTMLParser):
    """The tags with their attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_transcript_shows_a_turn_in_its_order() -> None:
    transcript = Transcript(
        [
            prompted("Fix it."),
            said("Hm.", "agent_thought_chunk"),
            update("plan", entries=[{"content": "Read", "priority": "high", "status": "pending"}]),
            update("tool_call", toolCallId="1", title="Edit a.py", status="pending"),
            update("plan", entries=[{"content": "Read", "priority": "high", "status": "completed"}]),
            update(
                "tool_call_update",
                toolCallId="1",
                status="completed",
                content=[{"type": "diff", "path": "/a.py", "oldText": "1\n", "newText": "2\n"}],
            ),
            said("It is "),
            said("**fixed**:\n```python\nprint(2)\n```\nIn `a.py`."),
            event({"id": 1, "result": {"stopReason": "max_tokens"}}),
        ]
    )
    html = _Reader(transcript.to_html())
    order = ["Fix it.", "Hm.", "✓ Read", "✓ Edit a.py", "-1\n+2", "It is fixed", "print(2)", "max_tokens"]
    places = [html.text.index(each) for each in order]
    assert places == sorted(places)
    assert [tag for tag, _ in html.tags if tag in {"b", "code"}].count("code") == 1
    assert "```" not in html.text
    markdown = transcript.to_markdown()
    assert all(each in markdown for each in ("**User**", "**Plan**", "✓ Edit a.py", "+2", "print(2)"))
    assert repr(transcript) == "<Transcript of 6 messages, plans and tool calls>"


@pytest.mark.parametrize(
    "shown",
    [
        prompted(EVIL),
        said(EVIL),
        said(f"```\n{EVIL}\n```\n`{EVIL}` **{EVIL}**"),
        said(EVIL, "agent_thought_chunk"),
        update("tool_call", toolCallId="1", title=EVIL, kind=EVIL, content=[{"type": EVIL}]),
        update(
            "tool_call", toolCallId="1", title="t", content=[{"type": "diff", "path": EVIL, "newText": EVIL}]
        ),
        update("plan", entries=[{"content": EVIL, "priority": EVIL, "status": EVIL}]),
        update("agent_message_chunk", content={"type": EVIL}),
        update("agent_message_chunk", content={"type": "image", "data": EVIL, "mimeType": "image/png"}),
        update("agent_message_chunk", content={"type": "image", "data": "AAAA", "mimeType": "image/svg+xml"}),
        update(
            "agent_message_chunk",
            content={"type": "image", "data": "AA", "mimeType": "image/png", "uri": EVIL},
        ),
        update(
            "agent_message_chunk",
            content={"type": "resource_link", "name": EVIL, "uri": "javascript:alert(1)"},
        ),
        event({"id": 1, "error": {"code": 1, "message": EVIL}}),
        event({"id": 1, "result": {"stopReason": EVIL}}),
        event({"method": EVIL, "params": {EVIL: EVIL}}),
        event(
            {
                "id": 1,
                "method": "session/request_permission",
                "params": {"sessionId": "s", "toolCall": {"toolCallId": "1", "title": EVIL}, "options": []},
            }
        ),
    ],
)
def test_what_an_agent_sends_is_no_markup(shown: SessionEvent) -> None:
    for html in (html_of(shown), html_of(Transcript([shown]))):
        for tag, attributes in _Reader(html).tags:
            assert tag in {"div", "pre", "b", "br", "code", "details", "summary", "img"}
            assert attributes.keys() <= {"style", "class", "src"}
            assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    for markdown in (markdown_of(shown), markdown_of(Transcript([shown]))):
        assert outside_of_fences(markdown).isprintable()
        assert not set(outside_of_fences(markdown)) & set("<>[]()!:`")


@pytest.mark.parametrize("text", ["```", "a\n````\n<b>", "`````js\r````", "~~~\n```"])
def test_a_text_does_not_end_its_code_block(text: str) -> None:
    lines = markdown_of(said(text)).split("\n")
    fence = lines[2].removesuffix("text")
    assert set(fence) == {"`"}
    assert lines[-1] == fence
    assert fence not in text


def outside_of_fences(markdown: str) -> str:
    """Return what is not in code blocks."""
    outside: list[str] = []
    fence = ""
    for line in markdown.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line.removesuffix("text")
        else:
            outside.append(line)
    assert not fence
    return "".join(outside)


def test_a_code_block_begins_at_the_start_of_a_line() -> None:
    # Searching for more, a line of many backticks takes minutes.
    assert "<pre" not in html_of(Transcript([said("see ```x\ny")]))
    assert "<pre" in html_of(Transcript([said("see\n```x\ny\n```\n")]))


def test_half_of_a_surrogate_pair_can_be_shown() -> None:
    payload = b'{"jsonrpc":"2.0","method":"session/update","params":{"update":{"sessionUpdate":'
    payload += b'"agent_message_chunk","content":{"type":"text","text":"a \\ud800 b"}}}}'
    shown = SessionEvent("e", 1, "s", 0, "c", "agent", payload)
    assert "a \ufffd b" in html_of(shown).encode().decode()
    assert "a \ufffd b" in markdown_of(shown).encode().decode()


def test_a_long_output_is_shortened() -> None:
    content = [{"type": "content", "content": {"type": "text", "text": "x" * 1_000_000}}]
    shown = update("tool_call", toolCallId="1", title="t", content=content)
    assert len(html_of(shown)) < 10_000
    assert "996000 more characters" in markdown_of(shown)
