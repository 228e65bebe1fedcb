"""With ``--fs-root`` no path leads out of the folders, whatever links are made meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import httpx2
import pytest

from tests.server.files.test_archives import entry, pack, upload
from tests.server.files.test_files import get, move, names, problem, put
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

# Of renameat2(2).
AT_FDCWD, RENAME_EXCHANGE = -100, 2
DENIED = (403, "permission_denied")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[ServerProcess, Path]]:
    folder = tmp_path_factory.mktemp("roots")
    for name in ("one", "two", "out", "one-more"):
        (folder / name).mkdir()
    options = ("--fs-root", str(folder / "one"), "--fs-root", str(folder / "two"))
    with our_server(folder, *options) as running:
        yield running, folder


@pytest.fixture
async def client(place: tuple[ServerProcess, Path]) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=place[0].url, timeout=30) as found:
        yield found


@pytest.fixture
def folder(place: tuple[ServerProcess, Path]) -> Generator[Path]:
    """The folder that has the roots ``one`` and ``two``; ``out`` has a secret."""
    root = place[1]
    (root / "out" / "secret").write_bytes(b"secret")
    yield root
    for name in names(root / "one")[::-1]:
        path = root / "one" / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert names(root / "out") == ["secret"]
    assert (root / "out" / "secret").read_bytes() == b"secret"
    (root / "out" / "secret").unlink()


async def test_files_in_the_roots_are_reached(client: httpx2.AsyncClient, folder: Path) -> None:
    assert (await put(client, folder / "one/sub/file", b"1")).status_code == 200
    (folder / "one/link").symlink_to("sub/file")
    (folder / "one/sub/up").symlink_to("../sub")
    (folder / "one/over").symlink_to(folder / "two")
    assert (await get(client, folder / "one/link")).content == b"1"
    assert (await get(client, folder / "one/sub/up/file")).content == b"1"
    assert (await put(client, folder / "one/over/file", b"2")).status_code == 200
    assert (folder / "two/file").read_bytes() == b"2"
    assert (await get(client, "sub/file")).content == b"1"  # the home is in no root: the first one
    assert (await get(client, folder / "one/sub/../link")).content == b"1"
    listed = (await client.get("/v1/fs/entries")).json()
    assert [one["name"] for one in listed] == ["link", "over", "sub"]
    assert (await move(client, folder / "one/link", folder / "one/new/link")).status_code == 200
    assert (folder / "one/new/link").is_symlink()
    path = {"path": str(folder / "one/sub"), "recursive": "true"}
    assert (await client.delete("/v1/fs/entry", params=path)).status_code == 200
    assert (await upload(client, folder / "one/up", pack(entry("file", b"3")))).status_code == 200
    assert (folder / "one/up/file").read_bytes() == b"3"


@pytest.mark.parametrize(
    "path",
    [
        "out/secret",
        "out",
        "one-more/file",
        "one/../out/secret",
        "one/link",
        "one/way/secret",
        "one/dots/out/secret",
        "one/chain/secret",
        "one/sub/../../out/secret",
    ],
)
async def test_no_path_leads_out(client: httpx2.AsyncClient, folder: Path, path: str) -> None:
    (folder / "one/sub").mkdir()
    (folder / "one/link").symlink_to(folder / "out/secret")
    (folder / "one/way").symlink_to(folder / "out")
    (folder / "one/dots").symlink_to("..")
    (folder / "one/chain").symlink_to("way")
    target = str(folder / path)
    assert problem(await get(client, target)) == DENIED
    assert problem(await put(client, target, b"x")) == DENIED
    assert problem(await client.get("/v1/fs/stat", params={"path": target})) == DENIED
    assert problem(await client.get("/v1/fs/entries", params={"path": target})) == DENIED
    assert problem(await client.get("/v1/fs/file", params={"path": target, "archive": "tar"})) == DENIED
    assert problem(await upload(client, folder / path, pack(entry("new", b"x")))) == DENIED
    (folder / "one/mine").touch()
    if path != "one/link":  # a link itself is in the root
        assert problem(await client.delete("/v1/fs/entry", params={"path": target})) == DENIED
        assert problem(await move(client, folder / "one/mine", folder / path, overwrite=True)) == DENIED
        assert problem(await move(client, folder / path, folder / "one/stolen")) == DENIED
        assert problem(await client.post("/v1/fs/mkdir", params={"path": f"{target}/new"})) == DENIED


async def test_a_root_itself_stays(client: httpx2.AsyncClient, folder: Path) -> None:
    for recursive in ("true", "false"):
        path = {"path": str(folder / "one"), "recursive": recursive}
        assert problem(await client.delete("/v1/fs/entry", params=path)) == DENIED
    assert problem(await move(client, folder / "one", folder / "two/one")) == DENIED
    assert (folder / "one").is_dir()


async def test_a_folder_that_becomes_a_link_meanwhile_does_not_lead_out(
    client: httpx2.AsyncClient, folder: Path
) -> None:
    """An agent swaps a folder with a link as fast as it can."""
    (folder / "one/link").symlink_to(folder / "out")
    (folder / "one/place").mkdir()
    stop = threading.Event()

    def swap() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        pair = (AT_FDCWD, bytes(folder / "one/place"), AT_FDCWD, bytes(folder / "one/link"))
        while not stop.is_set():
            assert libc.renameat2(*pair, RENAME_EXCHANGE) == 0

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen: set[int] = set()
    try:
        for number in range(300):
            path = folder / "one/place" / f"{number}"
            answers = await asyncio.gather(
                put(client, path, b"x"),
                get(client, folder / "one/place/secret"),
                client.delete("/v1/fs/entry", params={"path": str(folder / "one/place/secret")}),
                upload(client, folder / "one/place", pack(entry(f"sub/{number}", b"x"))),
                client.post("/v1/fs/mkdir", params={"path": str(folder / f"one/place/{number}-new")}),
                move(client, folder / "one/place/secret", folder / "two/stolen"),
                client.get("/v1/fs/entries", params={"path": str(folder / "one/place")}),
                client.get("/v1/fs/file", params={"path": str(folder / "one/place"), "archive": "tar"}),
                client.get("/v1/fs/stat", params={"path": str(folder / "one/place/secret")}),
            )
            assert not any(b"secret" in answer.content for answer in answers[1:3] if answer.is_success)
            assert not any(b"secret" in answer.content for answer in answers[6:] if answer.is_success)
            assert not answers[5].is_success
            assert not answers[8].is_success
            seen |= {answer.status_code for answer in answers}
    finally:
        stop.set()
        swapper.join()
    # Both were met: the folder and the link.
    assert {200, 403} <= seen
    assert names(folder / "out") == ["secret"]
