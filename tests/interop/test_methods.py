"""Every public method of the published SDK gives with our server what it gives with the published one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.interop.conftest import OURS, PUBLISHED
from tests.support.npm import PUBLISHED_SDK, PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import our_server, published_server, put_launcher

SCRIPTS = Path(__file__).parents[1] / "support/node"
CLASSES = ("SandboxAgent", "Session", "ProcessTerminalSession")
# Not served by this version.
DESKTOP = re.compile("desktop", re.IGNORECASE)


def public_methods(modules: Path) -> set[tuple[str, str]]:
    """Return the public methods and getters of the SDK's classes, as its types declare them."""
    declared = (modules / "sandbox-agent/dist/index.d.ts").read_text()
    found: set[tuple[str, str]] = set()
    for name in CLASSES:
        [body] = re.findall(rf"^declare class {name} (?:.*?){{\n(.*?)^}}", declared, re.MULTILINE | re.DOTALL)
        members = re.findall(r"^    (?:static |get )?(\w+)\(", body, re.MULTILINE)
        found |= {(name, member) for member in members if member != "constructor"}
    return found


def test_every_public_method_is_used_by_a_script() -> None:
    modules = npm_or_skip(PUBLISHED_SDK, "compatibility with the published SDK")
    methods = {(kind, name) for kind, name in public_methods(modules) if not DESKTOP.search(name)}
    assert len(methods) > 90
    used = "\n".join(script.read_text() for script in SCRIPTS.glob("*.mjs"))
    unused = {
        f"{kind}.{name}"
        for kind, name in methods
        if not re.search(rf"\.{name}\b|\[\"{name}\"|\"{name}\"\]", used)
    }
    assert unused == set()


def use_methods(kind: str, folder: Path, modules: Path) -> dict[str, Any]:
    """Run the script against a server; return its results."""
    folder.mkdir()
    with our_server(folder) if kind == OURS else published_server(folder) as server:
        put_launcher(folder / "data", "claude", [sys.executable, "-m", "sandbox_agent.agents.mock"])
        command = ["node", "--experimental-websocket", str(SCRIPTS / "methods.mjs"), str(modules)]
        done = subprocess.run(
            [*command, server.url, "claude", str(folder)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_published_sdk_uses_its_other_methods_with_either_server(tmp_path: Path) -> None:
    modules = npm_or_skip(PUBLISHED_SDK, "compatibility with the published SDK")
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    ours = use_methods(OURS, tmp_path / "ours", modules)
    theirs = use_methods(PUBLISHED, tmp_path / "theirs", modules)
    assert len(ours) == len(theirs) > 25
    assert ours == theirs  # no difference is kept
    assert ours["resume or create"] == "one"
    assert ours["asked by response"] == 1
    assert ours["web socket"] == ["ready", True]
    assert (ours["pauseSandbox"][-1], ours["killSandbox"][-1]) == ("pause box", "kill box")
