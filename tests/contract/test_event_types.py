"""docs/events.d.ts is up to date, and the TypeScript compiler accepts it, real events, and what uses them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sandbox_agent import (
    AgentUnparsedData,
    ErrorData,
    EventType,
    FileRefPart,
    ImagePart,
    ItemDeltaData,
    ItemEventData,
    JsonPart,
    PermissionEventData,
    QuestionEventData,
    ReasoningPart,
    SessionEndedData,
    SessionStartedData,
    StatusPart,
    StderrOutput,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    TurnEventData,
    UniversalEvent,
    UniversalItem,
)
from sandbox_agent.wire.universal import EVENT_DATA_TYPES, EventData
from tests.support.npm import TYPESCRIPT, npm_or_skip

ROOT = Path(__file__).parents[2]
TYPES = ROOT / "docs/events.d.ts"
ITEM = UniversalItem(
    "i",
    "message",
    [
        TextPart("text"),
        JsonPart({"any": [1, None]}),
        ToolCallPart("name", "{}", "c"),
        ToolResultPart("c", "output"),
        FileRefPart("/a", "patch", "diff"),
        ReasoningPart("text", "private"),
        ImagePart("data:image/png;base64,", "image/png"),
        StatusPart("label", "detail"),
    ],
    "completed",
    "assistant",
    "native",
    "parent",
)
DATA: dict[EventType, EventData] = {
    "session.started": SessionStartedData({"model": "m"}),
    "session.ended": SessionEndedData("error", "daemon", "m", 1, StderrOutput(True, "head", "tail", 9)),
    "turn.started": TurnEventData("started", "t"),
    "turn.ended": TurnEventData("ended", "t", {"stop_reason": "end_turn"}),
    "item.started": ItemEventData(ITEM),
    "item.delta": ItemDeltaData("i", "text", "native"),
    "item.completed": ItemEventData(UniversalItem("i", "status", [], "failed")),
    "error": ErrorData("message", "code", {"a": 1}),
    "permission.requested": PermissionEventData("p", "action", "requested", {}),
    "permission.resolved": PermissionEventData("p", "action", "accept_for_session"),
    "question.requested": QuestionEventData("q", "prompt", ["a", "b"], "requested"),
    "question.resolved": QuestionEventData("q", "prompt", [], "answered", "a"),
    "agent.unparsed": AgentUnparsedData("error", "location", "hash"),
}
PROGRAM = """
import type { AgentEvent, ContentPart, UniversalEvent } from "./events";

export function textOf(event: AgentEvent): string {
  switch (event.type) {
    case "item.delta": return event.data.delta;
    case "turn.ended": return event.data.turn_id ?? "";
    case "permission.requested": return event.data.permission_id;
    case "item.completed": {
      const [part] = event.data.item.content;
      // @ts-expect-error a part need not be text
      part?.text;
      return part?.type === "text" ? part.text : "";
    }
    // @ts-expect-error there is no such type
    case "item.strated": return "";
    // @ts-expect-error an error has no delta
    case "error": return event.data.delta;
    default: return event.time;
  }
}
export const parts = (event: UniversalEvent): ContentPart[] =>
  event.type === "item.started" ? event.data.item.content : [];
"""


def test_the_types_are_those_of_the_schemas() -> None:
    script = ROOT / "scripts/event_types.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_typescript_compiler_accepts_the_types_real_events_and_programs(tmp_path: Path) -> None:
    compiler = npm_or_skip(TYPESCRIPT, "the TypeScript types of events") / "typescript/bin/tsc"
    assert DATA.keys() == EVENT_DATA_TYPES.keys()
    events = [
        UniversalEvent("e", 1, "2026-01-01T00:00:00.000Z", "s", "agent", False, kind, data, "n", {"raw": 1})
        for kind, data in DATA.items()
    ]
    written = ",\n".join(event.to_json() for event in events)
    shutil.copy(TYPES, tmp_path / "events.d.ts")
    (tmp_path / "program.ts").write_text(PROGRAM)
    imported = 'import type { UniversalEvent } from "./events";'
    (tmp_path / "written.ts").write_text(
        f"{imported}\nexport const events: UniversalEvent[] = [{written}];\n"
    )
    command = ["node", str(compiler), "--strict", "--noEmit", "--target", "es2022", "--module", "es2022"]
    done = subprocess.run(
        [*command, "--moduleResolution", "bundler", "events.d.ts", "program.ts", "written.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
