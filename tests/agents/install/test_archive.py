"""Agents from archives: a real HTTP server, real archives, and archives that should not be unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import anyio
import pytest

from sandbox_agent.agents.catalogue import use_agents
from sandbox_agent.agents.info import agent_info
from sandbox_agent.agents.install import archive as archive_module
from sandbox_agent.agents.install.installed import agent_folder, read_installation
from sandbox_agent.agents.install.installer import Versions, install, response_of, uninstall, update
from sandbox_agent.agents.install.npm import current_platform
from sandbox_agent.agents.launch import resolve
from sandbox_agent.agents.user_agents import load_user_agents
from sandbox_agent.errors import InstallFailedError, InvalidRequestError
from tests.agents.conftest import Machine

pytestmark = pytest.mark.anyio

PROGRAM = f"""#!{sys.executable}
import json, sys
assert sys.argv[1:] == ["--acp"]
for line in sys.stdin:
    request = json.loads(line)
    result = {{"protocolVersion": 1, "agentInfo": {{"name": "x", "version": "7.0"}}}}
    print(json.dumps({{"jsonrpc": "2.0", "id": request["id"], "result": result}}), flush=True)
""".encode()


class Quiet(SimpleHTTPRequestHandler):
    silent = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/stalls":
            self.silent.wait(30)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class Files:
    """A folder, the URL under which it is served, and an agents file that names an archive in it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def use(self, name: str, data: bytes, member: str = "dist/tool", sha256: str = "", at: str = "") -> None:
        (self.folder / name).write_bytes(data)
        checksum = sha256 or hashlib.sha256(data).hexdigest()
        file = self.folder / "agents.toml"
        file.write_text(
            f'[tool.archive]\nname = "tool"\nversion = "1.2.3"\nargs = ["--acp"]\n'
            f"[tool.archive.platforms.{at or current_platform()}]\n"
            f'url = "{self.url}/{name}"\nsha256 = "{checksum}"\nmember = "{member}"\n'
        )
        load_user_agents(file)


@pytest.fixture
def files(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.setenv("PATH", os.defpath)
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Files(folder, f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
            use_agents({})


def keep(_: tarfile.TarInfo) -> None:
    pass


def tar_of(
    *members: tuple[str, bytes],
    mode: Literal["w:gz", "w:bz2", "w:xz"] = "w:gz",
    change: Callable[[tarfile.TarInfo], None] = keep,
) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode=mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            tar.addfile(info, io.BytesIO(data))
    return output.getvalue()


def zip_of(*members: tuple[str, bytes], mode: int = 0o644) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as zipped:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, data)
    return output.getvalue()


FORMATS = {
    "tool-1.2.3.tar.gz": tar_of(("dist/tool", PROGRAM)),
    "tool.tbz2": tar_of(("dist/tool", PROGRAM), mode="w:bz2"),
    "tool.tar.xz": tar_of(("dist/tool", PROGRAM), mode="w:xz"),
    "tool.zip": zip_of(("dist/tool", PROGRAM)),
    "tool": PROGRAM,
}


@pytest.mark.parametrize("name", FORMATS)
async def test_an_archive_is_installed_and_started(files: Files, name: str) -> None:
    files.use(name, FORMATS[name])
    result = await install("tool")
    assert not result.already_installed
    (artifact,) = response_of(result).artifacts
    assert (artifact.kind, artifact.source, artifact.version) == ("agent_process", "archive", "1.2.3")
    info = agent_info("tool")
    assert (info.installed, info.version, info.package, info.pinned_version) == (True, "7.0", "tool", "1.2.3")
    installation = read_installation("tool")
    assert installation is not None
    async with await anyio.open_process(resolve("tool").argv, stdin=-1) as process:
        assert process.stdin is not None
        await process.stdin.aclose()
        assert await process.wait() == 0
    assert (await install("tool")).already_installed
    assert await uninstall("tool")
    assert not agent_info("tool").installed
    assert [path.name for path in agent_folder("tool").iterdir()] == ["lock"]


async def test_an_update_installs_the_version_of_the_file(files: Files) -> None:
    files.use("tool", PROGRAM)
    await install("tool")
    file = files.folder / "agents.toml"
    file.write_text(file.read_text().replace("1.2.3", "1.2.4"))
    load_user_agents(file)
    result = await update("tool")
    assert result is not None
    assert result.installation is not None
    assert result.installation.version == "1.2.4"
    with pytest.raises(InvalidRequestError, match="version of tool cannot be chosen"):
        await install("tool", versions=Versions(acp="2.0.0"))


def absolute(info: tarfile.TarInfo) -> None:
    info.name = f"/{info.name}"


def link_out(info: tarfile.TarInfo) -> None:
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "../../../outside", 0


def hard_link_out(info: tarfile.TarInfo) -> None:
    info.type, info.linkname, info.size = tarfile.LNKTYPE, "/etc/passwd", 0


def device(info: tarfile.TarInfo) -> None:
    info.type, info.size = tarfile.FIFOTYPE, 0


GOOD = ("dist/tool", PROGRAM)
HOSTILE = {
    "up.tar.gz": tar_of(GOOD, ("../outside", b"x")),
    "absolute.tar.gz": tar_of(GOOD, change=absolute),
    "link.tar.gz": tar_of(("dist/tool", b""), change=link_out),
    "hard.tar.gz": tar_of(("dist/tool", b""), change=hard_link_out),
    "fifo.tar.gz": tar_of(("dist/tool", b""), change=device),
    "up.zip": zip_of(GOOD, ("../outside", b"x")),
    "windows.zip": zip_of(GOOD, ("..\\outside", b"x")),
    "absolute.zip": zip_of(GOOD, ("/outside", b"x")),
    "link.zip": zip_of(("dist/tool", b"../../outside"), mode=stat.S_IFLNK | 0o777),
    "cut.tar.gz": tar_of(GOOD)[:-40],
    "cut.zip": zip_of(GOOD)[:-10],
    "other.tar.gz": b"no archive",
    "empty.tar.xz": b"",
    "missing.tar.gz": tar_of(("dist/other", PROGRAM)),
    "folder.tar.gz": tar_of(("dist/tool/x", PROGRAM)),
}


def elsewhere(folder: Path) -> set[Path]:
    """Return the files outside of the agent's own folder."""
    return {path for path in folder.rglob("*") if "agents/tool" not in str(path)}


@pytest.mark.parametrize("name", HOSTILE)
async def test_an_archive_that_is_not_what_it_should_be_leaves_nothing(
    files: Files, name: str, tmp_path: Path
) -> None:
    files.use(name, HOSTILE[name])
    before = elsewhere(tmp_path)
    with pytest.raises(InstallFailedError, match="install failed: tool"):
        await install("tool")
    assert not agent_info("tool").installed
    assert [path.name for path in agent_folder("tool").iterdir()] == ["lock"]
    assert elsewhere(tmp_path) - before == {agent_folder("tool").parent}


@pytest.mark.parametrize("member", ["", "../archive", "/bin/sh", "dist"])
async def test_a_program_outside_of_the_archive_is_refused(files: Files, member: str) -> None:
    files.use("tool.tar.gz", FORMATS["tool-1.2.3.tar.gz"], member=member)
    with pytest.raises(InstallFailedError, match="has no program"):
        await install("tool")


async def test_another_checksum_is_refused_before_anything_is_unpacked(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(*_: object) -> Path:
        raise AssertionError

    monkeypatch.setattr(archive_module, "_unpack", unpack)
    files.use("tool", PROGRAM, sha256="0" * 64)
    with pytest.raises(InstallFailedError, match=f"checksum {hashlib.sha256(PROGRAM).hexdigest()}, not 0000"):
        await install("tool")


async def test_what_cannot_be_downloaded_is_an_error(files: Files) -> None:
    files.use("tool", PROGRAM)
    (files.folder / "tool").unlink()
    with pytest.raises(InstallFailedError, match="the status is 404"):
        await install("tool")
    files.use("tool", PROGRAM, at="plan9-vax")
    with pytest.raises(InstallFailedError, match=f"no archive for {current_platform()}, only for plan9-vax"):
        await install("tool")
    files.url = "http://user:password@127.0.0.1:1"
    files.use("tool", PROGRAM)
    with pytest.raises(InstallFailedError, match="ConnectError") as caught:
        await install("tool")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("limit", ["MAX_ARCHIVE_BYTES", "MAX_UNPACKED_BYTES", "MAX_MEMBERS"])
async def test_a_large_archive_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(archive_module, limit, 1)
    files.use("tool.tar.gz", tar_of(GOOD, ("more", b"x" * 100)))
    with pytest.raises(InstallFailedError, match=r"larger than 1 bytes|more than"):
        await install("tool")


async def test_a_server_that_sends_nothing_is_given_up(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "ARCHIVE_READ_SECONDS", 0.1)
    files.use("stalls", PROGRAM)
    try:
        with pytest.raises(InstallFailedError, match="ReadTimeout"):
            await install("tool")
    finally:
        Quiet.silent.set()
