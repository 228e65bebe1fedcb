"""The published SDK uses files of our server as it does those of the published one."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any, cast

from tests.interop.conftest import OURS, PUBLISHED
from tests.support.npm import PUBLISHED_SDK, PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import our_server, published_server

SCRIPT = Path(__file__).parents[1] / "support/node/files.mjs"
# What differs, and why.
DIFFERENCES = {
    "move over": (409, 400),  # something is in the way: a conflict
    "missing": (404, 400),  # what does not exist is not found
    "not empty": (409, 502),  # a conflict, and not an error of the server
}


def normalized(value: Any, folder: Path) -> Any:
    """Return a result without what differs between two folders, and with entries by name."""
    if isinstance(value, dict):
        members = {name: normalized(one, folder) for name, one in cast("dict[str, Any]", value).items()}
        if isinstance(members.get("modified"), str):
            members["modified"] = members["modified"][:4]  # the year
        if members.get("entryType") == "directory":
            members["size"] = 0  # depends on the file system
        return members
    if isinstance(value, list):
        found = [normalized(one, folder) for one in cast("list[Any]", value)]
        return sorted(found, key=str) if found and isinstance(found[0], dict) else found
    return value.replace(str(folder), "") if isinstance(value, str) else value


def use_files(kind: str, folder: Path, modules: Path) -> dict[str, Any]:
    """Run the script against a server; return its results."""
    folder.mkdir()
    (folder / "files").mkdir()
    with tarfile.open(folder / "batch.tar", "w") as tar:
        info = tarfile.TarInfo("sub/file")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"batch"))
    with our_server(folder) if kind == OURS else published_server(folder) as server:
        command = ["node", str(SCRIPT), str(modules), server.url]
        command += [str(folder / "files"), str(folder / "batch.tar")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return {name: normalized(result, folder / "files") for name, result in json.loads(done.stdout)}


def test_the_published_sdk_uses_files_of_either_server(tmp_path: Path) -> None:
    modules = npm_or_skip(PUBLISHED_SDK, "compatibility with the published SDK")
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    ours = use_files(OURS, tmp_path / "ours", modules)
    theirs = use_files(PUBLISHED, tmp_path / "theirs", modules)
    assert len(ours) == len(theirs) == 18
    for name, (our_status, their_status) in DIFFERENCES.items():
        assert (ours.pop(name), theirs.pop(name)) == ({"failed": our_status}, {"failed": their_status})
    assert ours == theirs
    assert ours["read"] == "hello"
