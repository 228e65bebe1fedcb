"""Watched folders: every change is found, or a gap is reported; nothing behind a link is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from sandbox_agent.errors import InvalidRequestError, NotFoundError, StreamError
from sandbox_agent.server.files import watching
from sandbox_agent.server.files.inotify import Inotify, Notice
from sandbox_agent.server.files.places import Places, Root
from sandbox_agent.server.files.tree import TEMPORARY, FileTree
from sandbox_agent.server.files.watching import Changes, InotifyWatch, ScanningWatch, Watch, open_watch

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
KINDS = [pytest.param(InotifyWatch, marks=linux_only), ScanningWatch]
Opener = Callable[..., Watch]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


@pytest.fixture(params=KINDS)
def watch(request: pytest.FixtureRequest, folder: Path) -> Generator[Opener]:
    """Opens watches of the folder."""
    opened: list[Watch] = []

    def make(*, recursive: bool = True, rooted: bool = False) -> Watch:
        tree = FileTree(Places([Root(folder)] if rooted else [], folder))
        opened.append(request.param(tree, str(folder), recursive=recursive))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def collect(watch: Watch, folder: Path, until: str) -> dict[str, str]:
    """Return the changes up to that of a path, by path; there is no gap."""
    found: dict[str, str] = {}
    while until not in found:
        changes = watch.wait(10)
        assert not changes.gap
        assert changes.ended is None
        for one in changes.found:
            path = str(Path(one.path).relative_to(folder))
            # One write may be in two batches.
            if one.type != "modified" or found.get(path) != "created":
                found[path] = one.type
    return found


def last(watch: Watch) -> Changes:
    """Return the changes with which a watch ends."""
    while (changes := watch.wait(0.2)).ended is None:
        pass
    return changes


def test_what_is_made_changed_and_deleted_is_found(watch: Opener, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/changed").write_text("1")
    (folder / "sub/deleted").write_text("1")
    (folder / "sub/old").write_text("1")
    found = watch()
    (folder / "sub/changed").write_text("23")
    (folder / "sub/deleted").unlink()
    (folder / "made").write_text("1")
    (folder / "sub/old").rename(folder / "new")
    assert collect(found, folder, "new") == {
        "sub/changed": "modified",
        "sub/deleted": "deleted",
        "made": "created",
        "sub/old": "deleted",
        "new": "created",
    }


def test_a_folder_that_comes_later_is_watched_too(watch: Opener, folder: Path, tmp_path: Path) -> None:
    found = watch()
    (tmp_path / "other/deep").mkdir(parents=True)
    (tmp_path / "other/deep/file").write_text("1")
    (tmp_path / "other").rename(folder / "other")
    assert collect(found, folder, "other/deep/file") == {
        "other": "created",
        "other/deep": "created",
        "other/deep/file": "created",
    }
    (folder / "other").rename(folder / "renamed")
    assert collect(found, folder, "renamed/deep/file")["other"] == "deleted"
    (folder / "renamed/deep/file").write_text("23")
    assert collect(found, folder, "renamed/deep/file") == {"renamed/deep/file": "modified"}
    shutil.move(folder / "renamed", tmp_path / "gone")
    (tmp_path / "gone/deep/file").write_text("456")
    (folder / "end").write_text("1")
    assert {path: kind for path, kind in collect(found, folder, "end").items() if kind != "deleted"} == {
        "end": "created"
    }


def test_a_link_is_not_followed(watch: Opener, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out/sub").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "out")
    found = watch(rooted=True)
    (folder / "later").symlink_to(tmp_path / "out")
    (tmp_path / "out/sub/secret").write_text("1")
    (tmp_path / "out/secret").write_text("1")
    (folder / "end").write_text("1")
    assert collect(found, folder, "end") == {"later": "created", "end": "created"}


def test_only_the_folder_itself_is_watched_when_that_is_asked(watch: Opener, folder: Path) -> None:
    (folder / "sub").mkdir()
    found = watch(recursive=False)
    (folder / "sub/file").write_text("1")
    (folder / "new").mkdir()
    (folder / "new/file").write_text("1")
    (folder / "end").write_text("1")
    changes = collect(found, folder, "end")
    assert {path: kind for path, kind in changes.items() if "/" in path} == {}
    assert (changes["new"], changes["end"]) == ("created", "created")


def test_files_that_are_being_written_do_not_appear(watch: Opener, folder: Path) -> None:
    found = watch()
    upload = FileTree(Places([], folder)).write(str(folder / "file"))
    upload.append(b"1")
    assert [path.name.startswith(TEMPORARY) for path in folder.iterdir()] == [True]
    upload.commit()
    upload.close()
    assert collect(found, folder, "file") == {"file": "created"}


def test_a_name_that_is_not_utf_8_is_replaced(watch: Opener, folder: Path) -> None:
    found = watch()
    (folder / os.fsdecode(b"\xff")).write_text("1")
    assert collect(found, folder, "\ufffd") == {"\ufffd": "created"}


def replace(folder: Path) -> None:
    """Put another folder in its place."""
    folder.rename(folder.with_name("moved"))
    folder.mkdir()


def move(folder: Path) -> None:
    """Move the folder."""
    folder.rename(folder.with_name("moved"))


def move_parent(folder: Path) -> None:
    """Move the folder that has the folder."""
    folder.parent.rename(folder.parent.with_name("elsewhere"))


@pytest.mark.parametrize("change", [shutil.rmtree, move, replace, move_parent])
def test_a_watch_ends_with_its_folder(
    watch: Opener, tmp_path: Path, folder: Path, change: Callable[[Path], object]
) -> None:
    found = watch()
    # A descriptor, such as a shell's working directory, keeps a deleted folder.
    kept = os.open(folder, os.O_RDONLY)
    try:
        change(folder)
        ended = last(found).ended
    finally:
        os.close(kept)
        if not tmp_path.exists():
            tmp_path.with_name("elsewhere").rename(tmp_path)
    assert ended is not None
    assert ended.gone
    assert str(folder) in ended.detail


def test_a_watch_ends_if_a_file_is_in_the_place_of_the_folder_when_one_in_it_is_new(
    watch: Opener, folder: Path
) -> None:
    found = watch()
    (folder / "new").mkdir()
    move(folder)
    folder.unlink(missing_ok=True)
    folder.write_text("a file")
    ended = last(found).ended
    assert ended is not None
    assert ended.gone


def test_a_wait_ends_early_when_it_is_woken(watch: Opener) -> None:
    found = watch()
    found.wake()
    assert found.wait(1_000) == Changes()


def test_what_is_no_folder_is_not_watched(folder: Path) -> None:
    tree = FileTree(Places([], folder))
    with pytest.raises(NotFoundError):
        open_watch(tree, str(folder / "missing"), recursive=True)
    (folder / "file").write_text("1")
    with pytest.raises(InvalidRequestError):
        open_watch(tree, str(folder / "file"), recursive=True)


def test_a_folder_with_too_many_folders_is_refused(
    watch: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_FOLDERS", 3)
    for name in "ab":
        (folder / name).mkdir()
    found = watch()
    for name in "cde":
        (folder / name).mkdir()
    changes = last(found)
    assert changes.ended is not None
    assert (changes.gap, changes.ended.gone) == (True, False)
    assert "use recursive=false" in changes.ended.detail
    with pytest.raises(StreamError, match="more than 3 folders"):
        watch()


@linux_only
def test_nothing_in_folders_that_are_made_quickly_is_lost(folder: Path, tmp_path: Path) -> None:
    found = InotifyWatch(FileTree(Places([], folder)), str(folder), recursive=True)
    script = "for i in $(seq 300); do mkdir -p $i/a/b; : > $i/a/b/file; done; : > end"
    with subprocess.Popen(["sh", "-c", script], cwd=folder):
        changes = collect(found, folder, "end")
    found.close()
    assert sum(path.endswith("/a/b/file") for path in changes) == 300


@linux_only
def test_an_overflow_is_a_gap_and_the_folders_of_that_time_are_watched(folder: Path) -> None:
    found = InotifyWatch(FileTree(Places([], folder)), str(folder), recursive=True)
    queued = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(queued // 2 + 1):
        (folder / "file").touch()
        (folder / "file").unlink()
    (folder / "sub").mkdir()
    while not found.wait(10).gap:
        pass
    (folder / "sub/file").write_text("1")
    assert collect(found, folder, "sub/file") == {"sub/file": "created"}
    found.close()


@linux_only
def test_a_file_that_changes_all_the_time_does_not_hold_changes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Inotify.read

    def read(self: Inotify) -> list[Notice]:
        # As a program that writes faster than notices are read.
        notices = real(self)
        (folder / "file").write_text("1")
        return notices

    (folder / "file").touch()
    found = InotifyWatch(FileTree(Places([], folder)), str(folder), recursive=True)
    monkeypatch.setattr(Inotify, "read", read)
    (folder / "file").write_text("1")
    assert collect(found, folder, "file") == {"file": "modified"}
    found.close()


LIMITED = """
import sys
from pathlib import Path
from sandbox_agent.errors import StreamError
from sandbox_agent.server.files.places import Places
from sandbox_agent.server.files.tree import FileTree
from sandbox_agent.server.files.watching import InotifyWatch
Path("/proc/sys/user/max_inotify_" + sys.argv[1]).write_text(sys.argv[2])
folder = Path(sys.argv[3])
try:
    InotifyWatch(FileTree(Places([], folder)), str(folder), recursive=True)
except StreamError as error:
    print(error)
"""


@linux_only
@pytest.mark.parametrize(("limit", "number"), [("watches", "3"), ("instances", "0")])
def test_the_systems_limits_are_an_error_that_names_them(folder: Path, limit: str, number: str) -> None:
    for name in "abcde":
        (folder / name).mkdir()
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", LIMITED, limit, number]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr:
        pytest.skip(f"no user namespaces: {done.stderr}")
    assert done.stderr == ""
    assert f"fs.inotify.max_user_{limit}" in done.stdout
