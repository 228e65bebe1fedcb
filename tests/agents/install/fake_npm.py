"""A node and an npm that behave at their interface as the real ones, and need no network.

``npm ci`` makes the commands of the agent; each of them is an ACP agent that answers initialize. The file
``npm.json`` beside npm says what it does: ``fail`` with this output, ``hang`` at this FIFO in the middle, and
the program of the ``agent``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NODE = """#!/bin/sh
case "$1" in --version) echo "v{version}"; exit 0;; esac
exec "$@"
"""
NPM = """#!{python}
import json, os, sys
from pathlib import Path
plan = json.loads(Path({plan!r}).read_text())
with Path({plan!r}).with_name("npm.log").open("a") as log:
    print(json.dumps([sys.argv[1:], os.environ["PATH"].split(":")[0], sorted(os.environ)]), file=log)
packages = list(json.loads(Path("package.json").read_text())["dependencies"])
for package in packages:
    print(f"npm http fetch GET 200 https://registry.npmjs.org/{{package}}/-/x.tgz 12ms", file=sys.stderr)
bin = Path("node_modules/.bin")
bin.mkdir(parents=True, exist_ok=True)
(Path("node_modules") / "half").touch()
if "hang" in plan:
    open(plan["hang"], "w").close()  # waits for a reader
    open(plan["hang"]).read()  # waits for a writer
if "fail" in plan:
    print(plan["fail"], file=sys.stderr)
    sys.exit(1)
if "bin" in plan:
    manifest = Path("node_modules", packages[0], "package.json")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({{"bin": plan["bin"]}}))
for name in plan["commands"]:
    command = bin / name
    command.write_text(plan["agent"])
    command.chmod(0o755)
print("added", len(packages), "packages")
"""
AGENT = """#!{python}
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "initialize":
        result = {{"protocolVersion": 1, "agentInfo": {{"name": "fake", "version": {version!r}}}}}
        result["_meta"] = {{"path": os.environ["PATH"].split(":")[0], "argv": sys.argv[1:]}}
    elif message.get("method") == "session/new":
        result = {{"sessionId": "session-1", "configOptions": {options!r}}}
    else:
        result = {{"stopReason": "end_turn"}}
    if "id" not in message:
        continue
    print(json.dumps({{"jsonrpc": "2.0", "id": message["id"], "result": result}}), flush=True)
"""
BROKEN = """#!/bin/sh
echo "no such module" >&2
exit 3
"""


class FakeNpm:
    """A node and an npm in a folder of PATH.

    Args:
        folder: A folder of PATH.
        node: The version that node reports.
    """

    def __init__(self, folder: Path, node: str = "24.1.0") -> None:
        self.folder = folder
        self.plan = folder / "npm.json"
        self._write("node", NODE.format(version=node))
        self._write("npm", NPM.format(python=sys.executable, plan=str(self.plan)))
        self.behave()

    def behave(
        self,
        *,
        version: str = "9.9.9",
        options: list[dict[str, Any]] | None = None,
        broken: bool = False,
        **plan: Any,
    ) -> None:
        """Choose what npm does from now on."""
        agent = AGENT.format(python=sys.executable, version=version, options=options or [])
        agent = BROKEN if broken else agent
        commands = ["claude-agent-acp", "codex-acp", "opencode", "pi-acp", "pi"]
        self.plan.write_text(json.dumps({"agent": agent, "commands": commands, **plan}))

    @property
    def calls(self) -> list[tuple[list[str], str, list[str]]]:
        """Each call: the arguments, the first folder of PATH, and the names of the environment."""
        log = self.folder / "npm.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
