"""Derive the capabilities and options of the catalogue from recorded ACP traffic.

``scripts/observe_agents.py FOLDER [--write]`` reads ``ID.ndjson`` and ``ID-*.ndjson`` of agents: one JSON
object a line, with ``dir`` ("c2a" from the client, "a2c" from the agent, "meta") and ``msg``, the envelope.
It prints what differs from ``catalogue.toml``, and with ``--write`` changes that file, except for the options
of agents that the published 0.4.2 server lists, which are as there. A list of models is left out if it has
the recording's own. A current value that the catalogue has is kept: that of a recording may have been
configured.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.engine.config_options import find_category, options_of
from sandbox_agent.wire.api import AgentCapabilities
from sandbox_agent.wire.jsonrpc import elements, members

ROOT = Path(__file__).parents[1]
FILE = ROOT / "src/sandbox_agent/agents/catalogue.toml"
PUBLISHED = ROOT / "tests/agents/golden/agents-0.4.2.json"
CATEGORIES = ("model", "mode", "thought_level")
# Names of models that only the scripted model of a recording has.
SCRIPTED = re.compile(r"\bfake\b")
# The server makes these events itself, for every agent.
ALWAYS = {"error_events", "item_started"}

Json = dict[str, Any]


class Observed:
    """What an agent did in its recordings.

    Attributes:
        capabilities: the names of what it supports.
        options: config options with the categories of CATEGORIES.
    """

    def __init__(self) -> None:
        self.capabilities: set[str] = set(ALWAYS)
        self.options: dict[str, Json] = {}
        self._requests: dict[object, Json] = {}
        self._servers: set[str] = set()

    def read(self, file: Path) -> None:
        """Read a recording."""
        for direction, message in _lines(file):
            if direction == "c2a" and "method" in message:
                self._requests[message.get("id")] = message
                for server in elements(members(message.get("params")).get("mcpServers")):
                    self._servers.add(str(members(server).get("name")))
            elif direction == "a2c" and "method" in message:
                self._read_call(str(message["method"]), members(message.get("params")))
            elif direction == "a2c":
                request = self._requests.pop(message.get("id"), {})
                self._read_result(request.get("method"), members(message.get("result")))

    def _read_result(self, method: object, result: Json) -> None:
        if method == "initialize":
            offered = members(result.get("agentCapabilities"))
            prompt = members(offered.get("promptCapabilities"))
            self._add("images", prompt.get("image"))
            self._add("file_attachments", prompt.get("embeddedContext"))
            resumes = "resume" in members(offered.get("sessionCapabilities"))
            self._add("session_lifecycle", offered.get("loadSession") or resumes)
        elif method == "session/new" and not self.options:
            options = options_of(result) or []
            found = {name: find_category(options, name) for name in CATEGORIES}
            self.options = {name: option for name, option in found.items() if option and _is_kept(option)}
            self._add("plan_mode", any(re.search(r"\bplan$", each) for each in self._choices("mode")))

    def _choices(self, category: str) -> Mapping[str, str]:
        return choices_of(self.options.get(category, {}))

    def _read_call(self, method: str, params: Json) -> None:
        if method == "session/request_permission":
            self._add("permissions", True)
        elif method == "elicitation/create":
            self._add("questions", True)
        elif method == "session/update":
            self._read_update(members(params.get("update")))

    def _read_update(self, update: Json) -> None:
        kind, text = str(update.get("sessionUpdate")), json.dumps(update)
        self._add("text_messages", kind == "agent_message_chunk")
        self._add("streaming_deltas", kind == "agent_message_chunk")
        self._add("reasoning", kind == "agent_thought_chunk")
        self._add("status", kind in ("usage_update", "session_info_update", "plan"))
        if kind in ("tool_call", "tool_call_update"):
            given = members(update.get("rawInput"))
            self._add("tool_calls", True)
            self._add("tool_results", update.get("status") == "completed")
            self._add("command_execution", update.get("kind") == "execute" or "command" in given)
            diffs = any(members(each).get("type") == "diff" for each in elements(update.get("content")))
            self._add(
                "file_changes", update.get("kind") == "edit" or diffs or {"path", "content"} <= given.keys()
            )
            self._add("mcp_tools", any(name in text for name in self._servers))

    def _add(self, name: str, supported: object) -> None:
        if supported:
            self.capabilities.add(name)


def _lines(file: Path) -> Iterator[tuple[str, Json]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        record = members(json.loads(line))
        yield str(record.get("dir")), members(record.get("msg"))


def choices_of(option: Json) -> dict[str, str]:
    """Return the names of an option's values, also of those in groups."""
    found: dict[str, str] = {}
    for entry in map(members, elements(option.get("options"))):
        for choice in map(members, elements(entry.get("options")) or [entry]):
            found[str(choice.get("value"))] = str(choice.get("name") or choice.get("value"))
    return found


def _is_kept(option: Json) -> bool:
    return option.get("type") == "select" and not any(map(SCRIPTED.search, choices_of(option)))


def observe(folder: Path) -> dict[str, Observed]:
    """Return what the agents of the catalogue did in the recordings of a folder, by id."""
    found: dict[str, Observed] = {}
    for agent_id in CATALOGUE:
        for file in (folder / f"{agent_id}.ndjson", *sorted(folder.glob(f"{agent_id}-*.ndjson"))):
            if file.is_file():
                found.setdefault(agent_id, Observed()).read(file)
    return found


def capability_lines(names: set[str]) -> str:
    """Return the entry's field, with the names in the order of AgentCapabilities."""
    lines, line = ["capabilities = ["], "   "
    for name in AgentCapabilities.__struct_fields__:
        if name in names:
            if len(line) + len(name) + 4 > 109:
                lines, line = [*lines, line], "   "
            line += f' "{name}",'
    return "\n".join([*lines, line, "]"])


def option_tables(agent_id: str, options: Mapping[str, Json]) -> str:
    """Return the tables of the entry's options."""
    text = ""
    for category, option in options.items():
        known = CATALOGUE[agent_id].options.get(category)
        current = option["currentValue"] if known is None else known.current
        text += f"\n[{agent_id}.options.{category}]\ncurrent = {json.dumps(current)}\n"
        text += f"[{agent_id}.options.{category}.choices]\n"
        pairs = choices_of(option).items()
        text += "".join(
            f"{json.dumps(value)} = {json.dumps(name, ensure_ascii=False)}\n" for value, name in pairs
        )
    return text


def rewrite(catalogue: str, agent_id: str, observed: Observed, *, with_options: bool = True) -> str:
    """Return the text of the catalogue with an agent's capabilities, and maybe its options, replaced."""
    begin = catalogue.index(f"[{agent_id}]\n")
    end = re.compile(rf"^\[(?!{agent_id}[.\]])", re.MULTILINE).search(catalogue, begin)
    stop = end.start() if end else len(catalogue)
    entry = catalogue[begin:stop]
    entry = re.sub(
        r"^capabilities = \[[^\]]*\]", capability_lines(observed.capabilities), entry, flags=re.MULTILINE
    )
    if with_options:
        entry = re.sub(rf"\n\[{agent_id}\.options\.[^\0]*", "", entry)
    entry = entry.rstrip() + "\n"
    if with_options:
        entry += option_tables(agent_id, observed.options)
    return catalogue[:begin] + entry + ("\n" if end else "") + catalogue[stop:]


def main() -> None:
    """Print the differences, and with --write change the catalogue."""
    folder = Path(next(word for word in sys.argv[1:] if not word.startswith("--")))
    published = {agent["id"] for agent in json.loads(PUBLISHED.read_bytes())["agents"]}
    text = FILE.read_text(encoding="utf-8")
    for agent_id, observed in observe(folder).items():
        agent = CATALOGUE[agent_id]
        listed = {name for name, value in msgspec.structs.asdict(agent.capabilities).items() if value}
        for sign, names in (("+", observed.capabilities - listed), ("-", listed - observed.capabilities)):
            for name in sorted(names):
                print(f"{agent_id}: {sign} {name}")
        for category, option in observed.options.items():
            known = agent.options.get(category)
            if known is None or known.choices.keys() != choices_of(option).keys():
                print(f"{agent_id}: {category}: {', '.join(choices_of(option))}")
        text = rewrite(text, agent_id, observed, with_options=agent_id not in published)
        if agent_id in published:
            print(f"{agent_id}: its options are kept as the published server lists them")
    if "--write" in sys.argv:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
