"""The published SDK uses terminals of our server as it does those of the published one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.interop.conftest import OURS, PUBLISHED
from tests.support.npm import PUBLISHED_SDK, PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import our_server, published_server

SCRIPT = Path(__file__).parents[1] / "support/node/terminal.mjs"
TOKEN = "s3cret-token-0123456789"
# What differs, and why.
DIFFERENCES = {
    # A viewer that joins later sees the screen, also after the end; the published server shows nothing.
    "last screen": (True, False),
    # Every message that is refused begins in the same way.
    "binary frame": (
        "invalid terminal frame: binary input is not supported: use text frames",
        "binary input is not supported; use text JSON frames",
    ),
}


def use_terminals(kind: str, folder: Path, modules: Path) -> dict[str, Any]:
    """Run the script against a server; return its results."""
    folder.mkdir()
    start = our_server if kind == OURS else published_server
    with start(folder, token=TOKEN) as server:
        # Node 20 has WebSocket with this option, later ones without.
        command = ["node", "--experimental-websocket", str(SCRIPT), str(modules), server.url, TOKEN]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_published_sdk_uses_terminals_of_either_server(tmp_path: Path) -> None:
    modules = npm_or_skip(PUBLISHED_SDK, "compatibility with the published SDK")
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    ours = use_terminals(OURS, tmp_path / "ours", modules)
    theirs = use_terminals(PUBLISHED, tmp_path / "theirs", modules)
    assert len(ours) == len(theirs) == 20
    for name, differs in DIFFERENCES.items():
        assert (ours.pop(name), theirs.pop(name)) == differs
    assert ours == theirs
    assert ours["size"] == "31 91"
    assert ours["exit"] == {"type": "exit", "exitCode": 7}
