"""The published SDK configures MCP servers and skills on our server as on the published one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.interop.conftest import OURS, PUBLISHED
from tests.support.npm import PUBLISHED_SDK, PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import our_server, published_server

SCRIPT = Path(__file__).parents[1] / "support/node/config.mjs"
# What differs, and why.
DIFFERENCES = {
    "invalid": (400, 422),  # as every other invalid body
}


def configure(kind: str, folder: Path, modules: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the script against a server; return its results, and what the files have then."""
    (folder / "work").mkdir(parents=True)
    with our_server(folder) if kind == OURS else published_server(folder) as server:
        command = ["node", str(SCRIPT), str(modules), server.url, str(folder / "work")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    files = (folder / "work/.sandbox-agent/config").iterdir()
    return dict(json.loads(done.stdout)), {path.name: json.loads(path.read_text()) for path in files}


def test_the_published_sdk_configures_either_server(tmp_path: Path) -> None:
    modules = npm_or_skip(PUBLISHED_SDK, "compatibility with the published SDK")
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    ours, our_files = configure(OURS, tmp_path / "ours", modules)
    theirs, their_files = configure(PUBLISHED, tmp_path / "theirs", modules)
    assert len(ours) == len(theirs) == 19
    for name, (our_status, their_status) in DIFFERENCES.items():
        assert (ours.pop(name), theirs.pop(name)) == ({"failed": our_status}, {"failed": their_status})
    assert ours == theirs
    assert ours["get list"] == {"type": "local", "command": ["a", "b"], "args": []}
    assert sorted(our_files) == ["mcp.json", "skills.json"]
    assert our_files == their_files
