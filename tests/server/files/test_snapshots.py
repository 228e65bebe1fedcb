"""Snapshots of work trees: complete, without a trace in the repository, and without running its code."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from sandbox_agent.errors import ConflictError
from sandbox_agent.server.files import snapshots
from sandbox_agent.server.files.snapshots import Difference, Snapshots, WorkTree, find_work_tree
from tests.client.checks import until

pytestmark = pytest.mark.anyio

WHO = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}


def git(folder: Path, *words: str) -> str:
    """Run Git as a user would."""
    env = {**os.environ, **WHO, "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-c", "protocol.file.allow=always", *words]
    return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with a commit."""
    return make_repo(tmp_path / "repo")


def make_repo(folder: Path, *options: str) -> Path:
    """Make a repository with a commit."""
    folder.mkdir()
    git(folder, "init", "-q", *options)
    (folder / "kept").write_text("kept\n" * 20)
    (folder / "changed").write_text("one\n")
    (folder / "deleted").write_text("deleted\n" * 20)
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots")


def tree_of(folder: Path) -> WorkTree:
    """Return the work tree of a folder."""
    found = find_work_tree(str(folder))
    assert found is not None
    return found


async def keep(made: Snapshots, folder: Path, name: str = "name") -> None:
    """Keep a snapshot."""
    await made.keep(tree_of(folder), name, await made.take(tree_of(folder)))


async def changes(made: Snapshots, folder: Path) -> Mapping[str, str]:
    """Return the parts of the difference by their first line."""
    found = await made.compare(tree_of(folder), "name")
    assert not found.truncated
    parts = found.patch.decode().split("diff --git ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def state(folder: Path) -> Mapping[str, tuple[int, int, int]]:
    """Return what is in a folder, with times."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size, path.lstat().st_ino)
        for path in folder.rglob("*")
    }


async def test_what_was_changed_since_is_found_and_nothing_else(made: Snapshots, repo: Path) -> None:
    (repo / "changed").write_text("two\n")
    (repo / "untracked").write_text("1\n")
    (repo / "same").write_text("1\n")
    git(repo, "add", "same")
    await keep(made, repo)
    (repo / "changed").write_text("three\n")
    (repo / "untracked").write_text("2\n")
    (repo / "kept").rename(repo / "renamed")
    (repo / "deleted").unlink()
    (repo / "new \n\u00e9").write_text("new\n")
    (repo / "binary").write_bytes(b"\0\1")
    (repo / "ignored").write_text("ignored\n")
    (repo / "link").symlink_to("/etc/passwd")
    git(repo, "add", "renamed")
    git(repo, "commit", "-qam", "the agent commits")
    found = await changes(made, repo)
    assert list(found) == [
        "a/binary b/binary",
        "a/changed b/changed",
        "a/deleted b/deleted",
        "a/link b/link",
        '"a/new \\n\\303\\251" "b/new \\n\\303\\251"',
        "a/kept b/renamed",
        "a/untracked b/untracked",
    ]
    assert "-two\n+three\n" in found["a/changed b/changed"]
    assert "deleted file mode" in found["a/deleted b/deleted"]
    assert "similarity index 100%" in found["a/kept b/renamed"]
    assert found["a/link b/link"].endswith("+/etc/passwd\n\\ No newline at end of file\n")
    assert "Binary files /dev/null and b/binary differ" in found["a/binary b/binary"]


async def test_the_difference_is_one_that_git_applies(made: Snapshots, repo: Path, tmp_path: Path) -> None:
    await keep(made, repo)
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(repo), str(other))
    (repo / "changed").write_text("two\n")
    (repo / "sub").mkdir()
    (repo / "sub/new\tname").write_text("new\n")
    (tmp_path / "patch").write_bytes((await made.compare(tree_of(repo), "name")).patch)
    git(other, "apply", str(tmp_path / "patch"))
    assert (other / "changed").read_text() == "two\n"
    assert (other / "sub/new\tname").read_text() == "new\n"


async def test_the_repository_stays_as_it_is(made: Snapshots, repo: Path) -> None:
    (repo / "changed").write_text("two\n")
    (repo / "untracked").write_text("1\n")
    before = state(repo)
    await keep(made, repo)
    await changes(made, repo)
    assert state(repo) == before


async def test_the_code_of_a_repository_is_not_run(made: Snapshots, repo: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\necho $0 $@ >> {ran}\ncat\n")
    script.chmod(0o755)
    inner = make_repo(tmp_path / "inner")
    git(repo, "submodule", "add", "-q", str(inner), "module")
    git(repo, "commit", "-qm", "module")
    (repo / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    for place in (repo, repo / "module"):
        for name in ("fsmonitor", "sshCommand", "pager", "editor", "askPass", "gitProxy"):
            git(place, "config", f"core.{name}", str(script))
        for name in ("clean", "smudge", "process"):
            git(place, "config", f"filter.evil.{name}", str(script))
        git(place, "config", "filter.evil.required", "true")
        for name in ("command", "textconv"):
            git(place, "config", f"diff.evil.{name}", str(script))
        git(place, "config", "diff.external", str(script))
        git(place, "config", "core.hooksPath", str(tmp_path / "hooks"))
        git(place, "config", "core.worktree", "/")
    (tmp_path / "hooks").mkdir()
    for hook in ("post-index-change", "reference-transaction", "pre-auto-gc", "fsmonitor-watchman"):
        (tmp_path / "hooks" / hook).symlink_to(script)
    (repo / "module/changed").write_text("in the module\n")
    await keep(made, repo)
    (repo / "changed").write_text("two\n")
    (repo / "module/changed").write_text("in the module again\n")
    assert list(await changes(made, repo)) == ["a/changed b/changed"]
    assert not ran.exists()
    # The same configuration does run code when Git uses it.
    env = {**os.environ, "GIT_WORK_TREE": str(repo)}
    await anyio.run_process(["git", "status"], cwd=repo, env=env, check=False)
    assert ran.exists()


async def test_work_trees_of_many_kinds_are_compared(made: Snapshots, repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "-q", str(tmp_path / "tree"))
    (tmp_path / "damaged").parent.mkdir(exist_ok=True)
    damaged = make_repo(tmp_path / "damaged")
    (damaged / ".git/index").write_bytes(b"DIRC damaged")
    sha256 = make_repo(tmp_path / "sha256", "--object-format=sha256")
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    (empty / "changed").write_text("one\n")
    for place in (tmp_path / "tree", damaged, sha256, empty):
        await keep(made, place)
        (place / "changed").write_text("two\n")
        found = await changes(made, place)
        assert list(found) == ["a/changed b/changed"], place
        assert "-one\n+two\n" in found["a/changed b/changed"]


async def test_a_file_becomes_a_folder_and_a_conflict_is_no_obstacle(made: Snapshots, repo: Path) -> None:
    git(repo, "checkout", "-qb", "other")
    (repo / "changed").write_text("theirs\n")
    git(repo, "commit", "-qam", "theirs")
    git(repo, "checkout", "-q", "-")
    (repo / "changed").write_text("ours\n")
    git(repo, "commit", "-qam", "ours")
    with pytest.raises(subprocess.CalledProcessError):
        git(repo, "merge", "other")
    await keep(made, repo)
    (repo / "changed").write_text("resolved\n")
    (repo / "kept").unlink()
    (repo / "kept").mkdir()
    (repo / "kept/inner").write_text("inner\n")
    found = await changes(made, repo)
    assert set(found) == {"a/changed b/changed", "a/kept b/kept", "a/kept/inner b/kept/inner"}
    assert found["a/changed b/changed"].endswith("+resolved\n")


async def test_a_folder_in_a_repository_has_the_whole_work_tree(made: Snapshots, repo: Path) -> None:
    (repo / "sub/deep").mkdir(parents=True)
    await keep(made, repo / "sub/deep")
    (repo / "changed").write_text("two\n")
    assert list(await changes(made, repo / "sub")) == ["a/changed b/changed"]


async def test_the_commit_of_a_submodule_and_a_repository_in_the_repository_are_not_looked_into(
    made: Snapshots, repo: Path
) -> None:
    nested = make_repo(repo / "nested")
    await keep(made, repo)
    (nested / "changed").write_text("two\n")
    (repo / "changed").write_text("two\n")
    assert list(await changes(made, repo)) == ["a/changed b/changed"]


async def test_files_that_are_too_large_are_left_out(
    made: Snapshots, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MOST_FILE_BYTES", 100)
    await keep(made, repo)
    (repo / "large").write_text("1" * 101)
    (repo / "small").write_text("1" * 100)
    assert list(await changes(made, repo)) == ["a/small b/small"]
    monkeypatch.setattr(snapshots, "MOST_BYTES", 99)
    with pytest.raises(ConflictError, match="have more than 99 bytes"):
        await made.compare(tree_of(repo), "name")


async def test_a_large_difference_ends_with_a_whole_file(
    made: Snapshots, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(made, repo)
    for name in "abc":
        (repo / name).write_text("line\n" * 1000)
    whole = (await made.compare(tree_of(repo), "name")).patch
    monkeypatch.setattr(snapshots, "MOST_DIFF_BYTES", len(whole) - 1)
    found = await made.compare(tree_of(repo), "name")
    assert found == Difference(whole[: whole.index(b"diff --git a/c")], True)
    monkeypatch.setattr(snapshots, "MOST_DIFF_BYTES", 1000)
    found = await made.compare(tree_of(repo), "name")
    assert (found.truncated, found.patch.endswith(b"+line\n"), len(found.patch) <= 1000) == (True, True, True)


async def test_a_git_that_hangs_is_ended_with_the_wait(
    made: Snapshots, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.take, tree_of(repo))
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        tasks.cancel_scope.cancel()
    await until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())


async def test_objects_that_are_gone_are_an_error(made: Snapshots, repo: Path) -> None:
    await keep(made, repo)
    (repo / "changed").write_text("two\n")
    git(repo, "commit", "-qa", "--amend", "-m", "again")
    git(repo, "reflog", "expire", "--expire=now", "--all")
    git(repo, "gc", "-q", "--prune=now")
    with pytest.raises(ConflictError, match="no longer has the state at the start"):
        await made.compare(tree_of(repo), "name")


async def test_snapshots_of_other_names_are_deleted(made: Snapshots, repo: Path, tmp_path: Path) -> None:
    other = make_repo(tmp_path / "other")
    await keep(made, repo)
    await keep(made, repo, "second")
    await keep(made, other)
    made.prune([], time.time() - 3600)
    assert made.has(tree_of(repo), "name")
    made.prune(["second"], time.time() + 1)
    assert not made.has(tree_of(repo), "name")
    assert made.has(tree_of(repo), "second")
    assert len(list(made.folder.iterdir())) == 1
    await keep(made, other)
    assert await changes(made, other) == {}


@pytest.mark.parametrize("text", ["", "gitdir: missing\n", "no gitdir\n"])
def test_what_is_no_work_tree_is_none(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if text:
        (folder / ".git").write_text(text)
    assert find_work_tree(str(folder)) is None
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo/.git")
    assert find_work_tree(str(tmp_path / "fifo")) is None
