"""The published SDK uses processes of our server as it does those of the published one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, cast

from tests.interop.conftest import OURS, PUBLISHED
from tests.support.npm import PUBLISHED_SDK, PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import our_server, published_server

SCRIPT = Path(__file__).parents[1] / "support/node/processes.mjs"
# What differs, and why.
DIFFERENCES = {
    "command missing": (400, 502),  # the command is wrong, not the server
    "run missing": (400, 502),
}
# What our answers have besides: additions.
ADDED = {"exitSignal"}
# Values that differ from run to run.
VARIABLE = {"pid", "createdAtMs", "exitedAtMs", "durationMs"}


def normalized(value: Any, folder: Path) -> Any:
    """Return a result without what differs from run to run, and without our additions."""
    if isinstance(value, dict):
        return {
            name: type(one).__name__ if name in VARIABLE else normalized(one, folder)
            for name, one in cast("dict[str, Any]", value).items()
            if name not in ADDED
        }
    if isinstance(value, list):
        return [normalized(one, folder) for one in cast("list[Any]", value)]
    return value.replace(str(folder), "") if isinstance(value, str) else value


def use_processes(kind: str, folder: Path, modules: Path) -> dict[str, Any]:
    """Run the script against a server; return its results."""
    folder.mkdir()
    with our_server(folder) if kind == OURS else published_server(folder) as server:
        command = ["node", str(SCRIPT), str(modules), server.url, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return {name: normalized(result, folder) for name, result in json.loads(done.stdout)}


def test_the_published_sdk_uses_processes_of_either_server(tmp_path: Path) -> None:
    modules = npm_or_skip(PUBLISHED_SDK, "compatibility with the published SDK")
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    ours = use_processes(OURS, tmp_path / "ours", modules)
    theirs = use_processes(PUBLISHED, tmp_path / "theirs", modules)
    assert len(ours) == len(theirs) == 36
    for name, (our_status, their_status) in DIFFERENCES.items():
        assert (ours.pop(name), theirs.pop(name)) == ({"failed": our_status}, {"failed": their_status})
    assert ours == theirs
    assert ours["logs"] == "red\nhö\n"
