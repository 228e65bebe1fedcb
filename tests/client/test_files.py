"""``sdk.files``: files and whole folders go into the sandbox and come back."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import httpx2
import pytest

from sandbox_agent import (
    ConflictError,
    ConnectionLostError,
    FsChange,
    FsEntry,
    InvalidRequestError,
    NotFoundError,
    SandboxAgent,
    SandboxAgentError,
)
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import our_server, published_server

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


@pytest.fixture
async def sdk(tmp_path: Path) -> AsyncGenerator[SandboxAgent]:
    (tmp_path / "home").mkdir()
    with our_server(tmp_path, env={"HOME": str(tmp_path / "home")}) as server:
        async with SandboxAgent.connect(base_url=server.url) as found:
            yield found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def tree(folder: Path) -> dict[str, bytes | str]:
    """Return the files of a folder with their contents, and the links with their targets."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def git(folder: Path, *words: str) -> None:
    """Run Git."""
    subprocess.run(["git", *words], cwd=folder, check=True)


async def test_a_file_is_written_read_moved_and_deleted(sdk: SandboxAgent, home: Path) -> None:
    files = sdk.files
    version = await files.write("notes/today.txt", "höllo")
    assert version
    assert await files.read_text(Path("notes/today.txt")) == "höllo"
    assert await files.read(home / "notes/today.txt", start=1, size=2) == "ö".encode()
    assert await files.read("notes/today.txt", start=4) == b"lo"
    assert await files.read("notes/today.txt", start=99) == b""
    assert await files.read("notes/today.txt", size=0) == b""
    assert (await files.stat("notes/today.txt")).size == 6
    (entry,) = await files.list("notes")
    assert isinstance(entry, FsEntry)
    assert (entry.name, entry.entry_type, entry.path) == ("today.txt", "file", str(home / "notes/today.txt"))
    assert await files.mkdir("old") == str(home / "old")
    assert await files.move("notes/today.txt", "old/today.txt") == str(home / "old/today.txt")
    await files.write("new", b"x")
    with pytest.raises(ConflictError):
        await files.move("new", "old/today.txt")
    await files.move("new", "old/today.txt", overwrite=True)
    with pytest.raises(ConflictError):
        await files.delete("old")
    await files.delete("old", recursive=True)
    assert [entry.name for entry in await files.list()] == ["notes"]
    with pytest.raises(NotFoundError):
        await files.read("old/today.txt")
    with pytest.raises(InvalidRequestError):
        await files.read("notes")


async def test_a_version_is_required(sdk: SandboxAgent) -> None:
    version = await sdk.files.write("file", "one", if_absent=True)
    with pytest.raises(SandboxAgentError) as exists:
        await sdk.files.write("file", "two", if_absent=True)
    assert exists.value.status == 412
    newer = await sdk.files.write("file", "two", if_match=version)
    with pytest.raises(SandboxAgentError) as changed:
        await sdk.files.write("file", "three", if_match=version)
    assert changed.value.status == 412
    assert newer != version
    assert await sdk.files.read_text("file") == "two"


async def test_content_is_streamed_both_ways(sdk: SandboxAgent) -> None:
    block = os.urandom(MIB)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield block

    await sdk.files.write("large", pieces())
    received = 0
    async for part in sdk.files.stream("large"):
        received += len(part)
    assert received == 20 * MIB


async def test_a_folder_goes_there_and_back(sdk: SandboxAgent, home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "deep").mkdir(parents=True)
    (source / "sub" / "deep" / "file").write_bytes(b"x" * 3 * MIB)
    (source / "program").write_bytes(b"p")
    (source / "program").chmod(0o755)
    (source / "link").symlink_to("sub/deep/file")
    sent: list[tuple[int, int | None]] = []
    await sdk.files.upload_dir(source, "work", progress=lambda done, total: sent.append((done, total)))
    assert tree(home / "work") == tree(source)
    assert (home / "work/program").stat().st_mode & 0o777 == 0o755
    assert len(sent) > 2
    assert sent[-1][0] == sent[-1][1]
    received: list[int] = []
    left_out = await sdk.files.download_dir(
        "work", tmp_path / "back", progress=lambda done, _: received.append(done)
    )
    assert left_out == []
    assert tree(tmp_path / "back") == tree(source)
    assert received[-1] > 3 * MIB


async def test_what_git_ignores_is_left_out(sdk: SandboxAgent, home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "-q")
    (source / ".gitignore").write_text("*.log\nbuild/\n")
    (source / "build").mkdir()
    (source / "build" / "out").touch()
    (source / "a.log").touch()
    (source / "ä.py").touch()
    (source / "gone.py").touch()
    git(source, "add", ".")
    (source / "gone.py").unlink()
    (source / "new.py").touch()
    await sdk.files.upload_dir(source, "work", gitignore=True)
    assert list(tree(home / "work")) == [".gitignore", "new.py", "ä.py"]
    with pytest.raises(InvalidRequestError, match="Git can't list"):
        await sdk.files.upload_dir(tmp_path / "home", "work", gitignore=True)
    with pytest.raises(InvalidRequestError, match="not a folder"):
        await sdk.files.upload_dir(tmp_path / "nope", "work")


async def test_links_that_lead_out_are_left_out_of_a_download(
    sdk: SandboxAgent, home: Path, tmp_path: Path
) -> None:
    (home / "work").mkdir()
    (home / "work" / "file").write_bytes(b"x")
    (home / "work" / "absolute").symlink_to("/etc/passwd")
    (home / "work" / "up").symlink_to("../../secret")
    left_out = await sdk.files.download_dir("work", tmp_path / "back")
    assert sorted(left_out) == ["absolute", "up"]
    assert tree(tmp_path / "back") == {"file": b"x"}


async def test_an_archive_that_a_server_makes_up_writes_nothing_outside(tmp_path: Path) -> None:
    made_up = io.BytesIO()
    with tarfile.open(fileobj=made_up, mode="w") as tar:
        for name in ("../out", "/tmp/out-of-a-download", "file"):
            tar.addfile(tarfile.TarInfo(name))

    async def pieces() -> AsyncIterator[bytes]:
        yield made_up.getvalue()

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=pieces()))
    async with SandboxAgent.connect(transport=transport, skip_health_check=True) as sdk:
        left_out = await sdk.files.download_dir("work", tmp_path / "back")
    assert "../out" in left_out
    assert not (tmp_path / "out").exists()
    assert "out-of-a-download" not in os.listdir("/tmp")  # noqa: PTH208


async def test_a_batch_is_bytes_or_a_file(sdk: SandboxAgent, home: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    answer = await sdk.files.upload_batch(archive.getvalue(), "one")
    assert answer.paths == [str(home / "one/empty")]
    (home / "archive").write_bytes(archive.getvalue())
    with (home / "archive").open("rb") as file:
        await sdk.files.upload_batch(file, "two")
    assert (home / "two/empty").exists()


async def test_a_server_that_is_gone_is_an_error(tmp_path: Path) -> None:
    server = our_server(tmp_path)
    with server:
        sdk = await SandboxAgent.connect(base_url=server.url)
        await sdk.files.list()
    try:
        with pytest.raises(ConnectionLostError):
            await sdk.files.write("file", "x")
        with pytest.raises(ConnectionLostError):
            await sdk.files.read("file")
    finally:
        await sdk.dispose()


async def test_changes_of_a_folder_are_found_from_the_beginning(sdk: SandboxAgent, home: Path) -> None:
    async with sdk.files.watch() as batches:
        (home / "file").touch()
        assert await anext(batches) == [FsChange(type="created", path=f"{home}/file")]
        (home / "sub").mkdir()
        assert await anext(batches) == [FsChange(type="created", path=f"{home}/sub")]
        async with sdk.files.watch("sub", recursive=False) as others:
            (home / "sub").rmdir()
            with pytest.raises(NotFoundError, match="deleted or moved"):
                await anext(others)
    with pytest.raises(NotFoundError):
        async with sdk.files.watch("sub"):
            pass


async def test_a_server_that_was_away_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with our_server(tmp_path, env={"HOME": str(tmp_path / "home")}) as server:
        async with (
            SandboxAgent.connect(base_url=server.url) as sdk,
            sdk.files.watch() as batches,
        ):
            server.kill()
            (tmp_path / "home/missed").touch()
            server.start()
            assert await anext(batches) == [FsChange(type="gap", path=f"{tmp_path}/home")]
            (tmp_path / "home/file").touch()
            assert await anext(batches) == [FsChange(type="created", path=f"{tmp_path}/home/file")]


async def test_files_of_the_published_server_are_used(tmp_path: Path) -> None:
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "file").write_bytes(b"x")
    work = tmp_path / "work"
    with published_server(tmp_path) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            assert await sdk.files.write(work / "a/file", b"0123456789") == ""
            assert await sdk.files.read(work / "a/file") == b"0123456789"
            assert await sdk.files.read(work / "a/file", start=2, size=3) == b"234"
            assert (await sdk.files.stat(work / "a/file")).size == 10
            assert [entry.name for entry in await sdk.files.list(work)] == ["a"]
            await sdk.files.mkdir(work / "b")
            await sdk.files.move(work / "a/file", work / "b/file")
            await sdk.files.upload_dir(tmp_path / "source", work)
            assert (work / "sub/file").read_bytes() == b"x"
            await sdk.files.delete(work / "b", recursive=True)
            assert sorted(path.name for path in work.iterdir()) == ["a", "sub"]
            with pytest.raises(InvalidRequestError):  # it answers 400
                await sdk.files.read(work / "nope")
            assert await sdk.files.read_text(work / "sub/file") == "x"
            assert [part async for part in sdk.files.stream(work / "sub/file")] == [b"x"]
            batch = io.BytesIO()
            with tarfile.open(fileobj=batch, mode="w") as tar:
                tar.add(tmp_path / "source/sub/file", "packed")
            uploaded = await sdk.files.upload_batch(batch.getvalue(), work)
            assert [Path(path).name for path in uploaded.paths] == ["packed"]
            # What it does not have is an error at once.
            with pytest.raises(InvalidRequestError, match="not a file"):
                await sdk.files.download_dir(work, tmp_path / "down")
            with pytest.raises(SandboxAgentError, match="endpoint not found"):
                await sdk.files.diff("a-session")
            with pytest.raises(SandboxAgentError, match="endpoint not found"):
                async with sdk.files.watch(work):
                    pass
