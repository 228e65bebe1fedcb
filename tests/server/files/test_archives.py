"""Batches are unpacked, and folders packed, without anything outside of the folder being read or written."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
from pathlib import Path

import httpx2
import pytest

from tests.server.files.test_files import names, problem
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio


def entry(name: str, content: bytes = b"", **members: object) -> tuple[tarfile.TarInfo, bytes]:
    """Return an entry of an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    for member, value in members.items():
        setattr(info, member, value)
    return info, content


def pack(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return written.getvalue()


async def upload(client: httpx2.AsyncClient, folder: Path, archive: bytes) -> httpx2.Response:
    """Upload a batch."""
    headers = {"content-type": "application/x-tar"}
    path = {"path": str(folder)}
    return await client.post("/v1/fs/upload-batch", params=path, content=archive, headers=headers)


async def download(client: httpx2.AsyncClient, folder: Path) -> tarfile.TarFile:
    """Download a folder."""
    answer = await client.get("/v1/fs/file", params={"path": str(folder), "archive": "tar"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar")
    return tarfile.open(fileobj=io.BytesIO(answer.content))


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """Return the entry of a folder."""
    return entry(name, type=tarfile.DIRTYPE, mode=0o755)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    """Return the entry of a link."""
    return entry(name, type=kind, linkname=target)


async def test_a_batch_is_unpacked(client: httpx2.AsyncClient, home: Path) -> None:
    (home / "up").mkdir()
    (home / "up" / "kept").write_bytes(b"kept")
    archive = pack(
        folder("empty"),
        entry("sub/file", b"content", mode=0o4755, mtime=1_700_000_000),
        link("sub/link", "file"),
        link("sub/up", "../kept"),
        link("sub/same", "sub/file", tarfile.LNKTYPE),
        entry("./sub/./file2", b"2"),
        entry("sub/" + "n" * 200, b"long"),
        entry("ümlaut", b"u"),
    )
    answer = await upload(client, home / "up", archive)
    up = home / "up"
    assert answer.json() == {
        "paths": [
            str(up / name)
            for name in (
                *("empty", "sub/file", "sub/link", "sub/up", "sub/same", "sub/file2"),
                *("sub/" + "n" * 200, "ümlaut"),
            )
        ],
        "truncated": False,
    }
    assert (up / "kept").read_bytes() == b"kept"
    assert (up / "sub/link").read_bytes() == b"content"
    assert (up / "sub/same").samefile(up / "sub/file")
    status = (up / "sub/file").stat()
    assert (status.st_mode & 0o7777, status.st_mtime) == (0o755, 1_700_000_000)
    assert not [name for name in names(home) if "sandbox-agent" in name]


async def test_the_answer_names_1024_paths_at_most(client: httpx2.AsyncClient, home: Path) -> None:
    answer = (await upload(client, home, pack(*(entry(f"{n}") for n in range(1_030))))).json()
    assert (len(answer["paths"]), answer["truncated"]) == (1_024, True)
    assert len(names(home)) == 1_030


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([entry("../out")], id="parent"),
        pytest.param([entry("sub/../../out")], id="parent-below"),
        pytest.param([entry("/tmp/out")], id="absolute"),
        pytest.param([link("out", "/etc/passwd")], id="absolute-link"),
        pytest.param([link("sub/out", "../../secret")], id="relative-link"),
        pytest.param([link("out", "../secret", tarfile.LNKTYPE)], id="hard-link"),
        pytest.param([link("out", "/etc/passwd", tarfile.LNKTYPE)], id="absolute-hard-link"),
        pytest.param([link("way", "sub"), entry("way/file")], id="behind-a-link"),
        pytest.param([entry("device", type=tarfile.CHRTYPE, devmajor=1, devminor=5)], id="device"),
        pytest.param([entry("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0)], id="block-device"),
        pytest.param([entry("pipe", type=tarfile.FIFOTYPE)], id="pipe"),
        pytest.param([entry("in", pax_headers={"path": "../out"})], id="parent-in-a-header"),
        pytest.param([link("way", "sub"), link("way/link", "file")], id="link-behind-a-link"),
    ],
)
async def test_an_archive_that_leads_out_is_refused_as_a_whole(
    client: httpx2.AsyncClient, home: Path, bad: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    (home / "secret").write_bytes(b"secret")
    answer = await upload(client, home / "up", pack(entry("first", b"1"), *bad))
    assert problem(answer) == (400, "invalid_request")
    assert "nothing was written" in answer.json()["detail"]
    assert names(home) == ["secret"]


@pytest.mark.parametrize(
    "archive",
    [
        b"garbage",
        pack(entry("file", b"x" * 5_000))[:3_000],
        pack(entry("file", b"x" * 5_000))[:512] + b"\xff" * 5_000,
        # It would be a thousand times as large.
        gzip.compress(pack(entry("file", bytes(10_000_000)))),
        pack(entry("file", pax_headers={"size": str(1 << 40)})),
        pack(
            entry(
                "file",
                b"1\n0\n1\n".ljust(512, b"\0"),
                pax_headers={
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "file",
                    "GNU.sparse.realsize": str(1 << 40),
                },
            )
        ),
    ],
    ids=["garbage", "cut off", "overwritten", "compressed", "size in a header", "sparse in a header"],
)
async def test_what_is_no_whole_archive_is_refused(
    client: httpx2.AsyncClient, home: Path, archive: bytes
) -> None:
    assert problem(await upload(client, home / "up", archive)) == (400, "invalid_request")
    assert names(home) == []


async def test_links_that_are_there_do_not_lead_out_either(client: httpx2.AsyncClient, home: Path) -> None:
    (home / "outside").mkdir()
    (home / "outside" / "file").write_bytes(b"before")
    (home / "up").mkdir()
    (home / "up" / "way").symlink_to(home / "outside")
    (home / "up" / "link").symlink_to(home / "outside" / "file")
    (home / "up" / "dots").symlink_to("../outside")
    for name in ("way/new", "way/file", "dots/new"):
        assert problem(await upload(client, home / "up", pack(entry(name, b"x")))) == (
            403,
            "permission_denied",
        )
    # A link at the place of a file is replaced.
    assert (await upload(client, home / "up", pack(entry("link", b"after")))).status_code == 200
    assert (home / "up/link").read_bytes() == b"after"
    assert names(home / "outside") == ["file"]
    assert (home / "outside/file").read_bytes() == b"before"


async def test_links_that_lead_out_one_after_the_other_are_of_no_use(
    client: httpx2.AsyncClient, home: Path
) -> None:
    """Each of them is inside by its name; followed after the other, they end in the folder above."""
    links = pack(link("here", "."), link("above", "here/.."))
    assert (await upload(client, home / "up", links)).status_code == 200
    assert (home / "up/above").samefile(home)
    for archive in (
        pack(entry("above/out", b"x")),
        pack(link("above/out", "here")),
        pack(folder("above/out")),
        pack(entry("own", b"x"), link("above/out", "own", tarfile.LNKTYPE)),
    ):
        assert problem(await upload(client, home / "up", archive)) == (403, "permission_denied")
    assert {path.split("/")[0] for path in names(home)} == {"up"}


async def test_a_batch_that_is_cut_off_writes_nothing(server: tuple[ServerProcess, Path], home: Path) -> None:
    (home / "up").mkdir()
    (home / "up" / "file").write_bytes(b"before")
    archive = pack(entry("new", b"n"), entry("file", bytes(4_000_000)))
    head = (
        f"POST /v1/fs/upload-batch?path={home / 'up'} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/x-tar\r\nContent-Length: {len(archive)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server[0].port)) as connection:
        connection.sendall(head.encode() + archive[:2_000_000])
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(20)
        while connection.recv(65_536):  # until the server has noticed it
            pass
    assert names(home / "up") == ["file"]
    assert (home / "up/file").read_bytes() == b"before"


async def test_another_media_type_is_refused(client: httpx2.AsyncClient, home: Path) -> None:
    path = {"path": str(home)}
    answer = await client.post("/v1/fs/upload-batch", params=path, content=pack(entry("file")))
    assert problem(answer) == (400, "invalid_request")
    assert names(home) == []


async def test_a_larger_archive_than_allowed_is_refused(tmp_path: Path) -> None:
    with our_server(tmp_path, "--max-upload-bytes", "20000") as server:
        async with httpx2.AsyncClient(base_url=server.url) as client:
            large = pack(entry("file", bytes(30_000)))
            assert problem(await upload(client, tmp_path / "up", large)) == (413, "payload_too_large")
            assert not (tmp_path / "up").exists()
            assert (await upload(client, tmp_path / "up", pack(entry("file", b"x")))).status_code == 200


async def test_a_sparse_file_does_not_fill_the_disk(client: httpx2.AsyncClient, home: Path) -> None:
    """Of 512 bytes in the archive, a TiB would be written."""
    info, _ = entry("bomb", type=tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (1 << 32)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    assert problem(await upload(client, home / "up", bytes(header) + bytes(1_024))) == (
        400,
        "invalid_request",
    )
    assert names(home) == []


async def test_a_folder_is_packed(client: httpx2.AsyncClient, home: Path) -> None:
    (home / "down" / "sub").mkdir(parents=True)
    (home / "down" / "sub" / "file").write_bytes(b"x" * 3_000_000)
    (home / "down" / "program").write_bytes(b"p")
    (home / "down" / "program").chmod(0o755)
    (home / "down" / "link").symlink_to("/etc/passwd")
    (home / "down" / "way").symlink_to("/etc")
    (home / "down" / ("ü" * 120)).write_bytes(b"u")
    os.mkfifo(home / "down" / "pipe")
    with await download(client, home / "down") as tar:
        found = {member.name: member for member in tar}
        assert sorted(found) == ["link", "program", "sub", "sub/file", "way", "ü" * 120]
        assert (found["link"].linkname, found["way"].issym()) == ("/etc/passwd", True)
        assert found["program"].mode & 0o777 == 0o755
        content = tar.extractfile("sub/file")
        assert content is not None
        assert content.read() == b"x" * 3_000_000


async def test_what_was_packed_is_unpacked_again(client: httpx2.AsyncClient, home: Path) -> None:
    (home / "one" / "a" / "b").mkdir(parents=True)
    (home / "one" / "a" / "file").write_bytes(b"1")
    (home / "one" / "link").symlink_to("a/file")
    answer = await client.get("/v1/fs/file", params={"path": str(home / "one"), "archive": "tar"})
    assert (await upload(client, home / "two", answer.content)).status_code == 200
    assert names(home / "two") == names(home / "one")
    assert (home / "two/link").read_bytes() == b"1"


@pytest.mark.parametrize(("path", "status"), [("nope", 404), ("file", 400)])
async def test_only_a_folder_is_packed(
    client: httpx2.AsyncClient, home: Path, path: str, status: int
) -> None:
    (home / "file").touch()
    answer = await client.get("/v1/fs/file", params={"path": str(home / path), "archive": "tar"})
    assert problem(answer)[0] == status
