"""Skills of a folder are where the agent looks for them, before its session is opened."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from sandbox_agent.agents.environment import AgentEnvironment
from sandbox_agent.errors import InvalidRequestError, StreamError
from sandbox_agent.runtime.user import User
from sandbox_agent.server.configuration import skill_files, skill_sources, skills
from sandbox_agent.server.configuration.files import SKILLS, ConfigFiles
from sandbox_agent.server.configuration.folders import FolderConfiguration
from sandbox_agent.server.configuration.skill_files import MARKER, SkillError, read_skills
from sandbox_agent.server.configuration.skill_sources import Repositories
from sandbox_agent.server.configuration.skills import Skills
from sandbox_agent.server.files.places import Places
from sandbox_agent.server.files.tree import FileTree
from sandbox_agent.wire.configuration import SkillsConfig, SkillSource
from tests.server.configuration.test_mcp_servers import recording
from tests.support.git_server import GitServer, commit, git, git_server
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

ONE = "---\nname: one\ndescription: The first.\n---\nDo it.\n"


@pytest.fixture
def repositories(tmp_path: Path) -> Generator[GitServer]:
    (tmp_path / "repositories").mkdir()
    with git_server(tmp_path / "repositories") as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Generator[ServerProcess]:
    put_launcher(tmp_path / "data", "claude", recording(tmp_path, "http"))
    with our_server(tmp_path) as running:
        yield running


@pytest.fixture
async def client(server: ServerProcess) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as found:
        yield found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


async def configure(client: httpx2.AsyncClient, work: Path, name: str, *sources: Any) -> None:
    response = await client.put(
        "/v1/config/skills",
        params={"directory": str(work), "skillName": name},
        json={"sources": list(sources)},
    )
    assert response.status_code == 204, response.text


_numbers = iter(range(1, 1000))


async def create(client: httpx2.AsyncClient, work: Path, agent: str = "mock") -> httpx2.Response:
    return await client.post(f"/v1/sessions/s{next(_numbers)}", json={"agent": agent, "directory": str(work)})


async def refusal(client: httpx2.AsyncClient, work: Path) -> str:
    """Return why no session is opened."""
    response = await create(client, work)
    assert response.status_code == 502, response.text
    detail: str = response.json()["detail"]
    assert "no session is opened without them" in detail
    return detail


def installed(work: Path, folder: str = ".agents/skills") -> dict[str, str]:
    """Return the files of the skills that an agent finds, without the server's own."""
    root = work / folder
    paths = [
        path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in (MARKER, ".gitignore")
    ]
    return {str(path.relative_to(root)): path.read_text() for path in paths}


def repository(server: GitServer, name: str, files: dict[str, str]) -> str:
    folder = server.folder / name
    folder.mkdir(exist_ok=True)
    write(folder, files)
    commit(folder)
    return f"{server.url}/{name}/.git"


async def test_skills_of_a_folder_are_installed_before_the_session_is_opened(
    client: httpx2.AsyncClient, tmp_path: Path, work: Path
) -> None:
    source = tmp_path / "source"
    write(source, {"skills/one/SKILL.md": ONE, "skills/one/run.sh": "#!/bin/sh\n", "two/SKILL.md": "two"})
    (source / "skills/one/run.sh").chmod(0o700)
    (source / "skills/one/docs").mkdir()
    (source / "skills/one/docs/link").symlink_to("../SKILL.md")
    await configure(client, work, "mine", {"type": "local", "source": str(source)})
    assert (await create(client, work)).status_code == 200
    assert installed(work) == {
        "one/SKILL.md": ONE,
        "one/docs/link": ONE,
        "one/run.sh": "#!/bin/sh\n",
        "two/SKILL.md": "two",
    }
    assert os.access(work / ".agents/skills/one/run.sh", os.X_OK)
    assert (work / ".agents/skills/one/docs/link").is_symlink()
    assert not list((work / ".sandbox-agent").glob(".sandbox-agent-*"))
    # Claude looks elsewhere.
    assert (await create(client, work, "claude")).status_code == 200
    assert installed(work, ".claude/skills") == installed(work)


async def test_installed_skills_are_no_changes_of_the_workspace(
    client: httpx2.AsyncClient, tmp_path: Path, work: Path
) -> None:
    write(tmp_path / "source", {"a/SKILL.md": "a", "b/SKILL.md": "b", "b/.gitignore": "the skill's"})
    git(work, "init", "-q")
    await configure(client, work, "mine", {"type": "local", "source": "../source"})
    assert (await create(client, work)).status_code == 200
    assert installed(work) == {"a/SKILL.md": "a", "b/SKILL.md": "b"}
    found = git(work, "status", "--porcelain", "--untracked-files=all", ".agents")
    # A skill that has such a file for Git keeps it.
    assert {line.split()[-1].rpartition("/")[0] for line in found.splitlines()} == {".agents/skills/b"}


async def test_skills_follow_the_configuration(
    client: httpx2.AsyncClient, tmp_path: Path, work: Path
) -> None:
    write(tmp_path / "source", {"a/SKILL.md": "a", "b/SKILL.md": "b"})
    write(work, {".agents/skills/own/SKILL.md": "the user's", ".agents/skills/b/SKILL.md": "the user's"})
    await configure(client, work, "mine", {"type": "local", "source": "../source"})
    response = await create(client, work)
    assert response.status_code == 200
    users = {"own/SKILL.md": "the user's", "b/SKILL.md": "the user's"}
    assert installed(work) == {"a/SKILL.md": "a", **users}
    write(tmp_path / "source", {"a/SKILL.md": "new", "a/more": "x"})
    await create(client, work)
    assert installed(work) == {"a/SKILL.md": "new", "a/more": "x", **users}
    (tmp_path / "source/a/more").unlink()
    await create(client, work)
    assert installed(work) == {"a/SKILL.md": "new", **users}
    await configure(client, work, "mine", {"type": "local", "source": "../source", "skills": ["b"]})
    await create(client, work)
    assert installed(work) == users
    await client.delete("/v1/config/skills", params={"directory": str(work), "skillName": "mine"})
    assert (await create(client, work)).status_code == 200
    assert installed(work) == users


async def test_a_skill_in_the_place_of_the_users_own_is_reported(
    client: httpx2.AsyncClient, tmp_path: Path, work: Path
) -> None:
    write(tmp_path / "source", {"a/SKILL.md": "a"})
    write(work, {".agents/skills/a/SKILL.md": "the user's"})
    await configure(client, work, "mine", {"type": "local", "source": str(tmp_path / "source")})
    response = await client.post("/v1/sessions/x", json={"agent": "mock", "directory": str(work)})
    assert response.status_code == 200
    response = await client.post("/v1/sessions/x/messages/stream", json={"message": "echo hello"})
    assert response.status_code == 200
    events = (await client.get("/v1/sessions/x/events")).text
    assert "skills a: .agents/skills/a exists and is not the server's" in events


@pytest.mark.parametrize("kind", ["branch", "tag", "commit", "default"])
async def test_skills_of_a_repository_are_fetched_once(
    client: httpx2.AsyncClient, repositories: GitServer, work: Path, kind: str
) -> None:
    url = repository(repositories, "r", {"x/skills/one/SKILL.md": ONE, "x/skills/two/SKILL.md": "two"})
    folder = repositories.folder / "r"
    git(folder, "tag", "v1")
    git(folder, "branch", "old")
    at = git(folder, "rev-parse", "HEAD")
    if kind != "default":
        repository(repositories, "r", {"x/skills/one/SKILL.md": "newer"})
    ref = {"branch": "old", "tag": "v1", "commit": at, "default": None}[kind]
    source = {"type": "git", "source": url, "ref": ref, "subpath": "x/skills", "skills": ["one"]}
    await configure(client, work, "mine", source)
    responses = await asyncio.gather(*(create(client, work) for _ in range(4)))
    assert [response.status_code for response in responses] == [200] * 4
    assert installed(work) == {"one/SKILL.md": ONE}
    assert (await create(client, work)).status_code == 200
    assert repositories.fetches == 1


async def test_a_repository_of_github_is_named_by_its_owner(
    tmp_path: Path, repositories: GitServer, work: Path
) -> None:
    (repositories.folder / "owner").mkdir()
    repository(repositories, "owner/r", {"one/SKILL.md": ONE})
    instead = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repositories.url}/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }
    with our_server(tmp_path, env=instead) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            await configure(client, work, "mine", {"type": "github", "source": "owner/r"})
            assert (await create(client, work)).status_code == 200
    assert installed(work) == {"one/SKILL.md": ONE}


async def test_a_repository_is_fetched_again_when_it_is_configured_again(
    client: httpx2.AsyncClient, repositories: GitServer, work: Path
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    await configure(client, work, "mine", {"type": "git", "source": url})
    await create(client, work)
    repository(repositories, "r", {"one/SKILL.md": "newer"})
    await create(client, work)
    assert installed(work) == {"one/SKILL.md": ONE}
    await configure(client, work, "mine", {"type": "git", "source": url})
    await create(client, work)
    assert installed(work) == {"one/SKILL.md": "newer"}


async def test_a_repository_that_is_one_skill_has_its_name(
    client: httpx2.AsyncClient, repositories: GitServer, work: Path
) -> None:
    url = repository(repositories, "r", {"SKILL.md": ONE, "inner/SKILL.md": "no skill of its own"})
    await configure(client, work, "mine", {"type": "git", "source": url})
    assert (await create(client, work)).status_code == 200
    assert installed(work) == {"one/SKILL.md": ONE, "one/inner/SKILL.md": "no skill of its own"}


async def test_the_copy_of_before_is_used_if_a_repository_cannot_be_fetched_again(
    client: httpx2.AsyncClient, server: ServerProcess, repositories: GitServer, work: Path
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    await configure(client, work, "mine", {"type": "git", "source": url})
    await create(client, work)
    repositories.password = "secret"
    await configure(client, work, "mine", {"type": "git", "source": url})
    assert (await create(client, work)).status_code == 200
    assert installed(work) == {"one/SKILL.md": ONE}
    assert "are those of before" in server.log.read_text()


async def test_a_repository_that_asks_for_a_password_is_an_error(
    client: httpx2.AsyncClient, server: ServerProcess, repositories: GitServer, work: Path
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    repositories.password = "value-that-is-secret"
    await configure(client, work, "mine", {"type": "git", "source": url})
    assert "terminal prompts disabled" in await refusal(client, work)
    wrong = url.replace("http://", "http://user:another-secret@")
    await configure(client, work, "mine", {"type": "git", "source": wrong})
    detail = await refusal(client, work)
    assert "can't be fetched" in detail
    assert "another-secret" not in detail
    right = url.replace("http://", f"http://user:{repositories.password}@")
    await configure(client, work, "mine", {"type": "git", "source": right})
    assert (await create(client, work)).status_code == 200
    log = server.log.read_text()
    assert "another-secret" not in log
    assert repositories.password not in log
    left = [path.name for path in (server.log.parent / "data/sandbox-agent/skills").iterdir()]
    assert len(left) == 2  # the folder and its file: nothing of the attempts


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"ref": "no-such"}, "couldn't find remote ref no-such"),
        ({"ref": "--upload-pack=x"}, "invalid ref"),
        ({"ref": "a..b"}, "invalid ref"),
        ({"subpath": "no/such"}, "has no folder 'no/such'"),
        ({"subpath": "../.."}, "has no folder '../..'"),
        ({"subpath": "link"}, "has no folder 'link'"),
        ({"skills": ["three"]}, "has no skill three: it has one"),
        ({"subpath": "empty"}, "no folder with a SKILL.md"),
        ({"source": "ext::sh -c true"}, "invalid source"),
        ({"source": "/etc"}, "invalid source"),
        ({"source": "file:///etc"}, "invalid source"),
        ({"source": "--upload-pack=x"}, "invalid source"),
        ({"type": "github", "source": "https://github.com/o/r"}, "use owner/repository"),
        ({"type": "zip"}, "unknown type 'zip'"),
        ({"type": "local", "source": "/no/such"}, "path not found"),
    ],
)
async def test_a_source_that_cannot_be_used_is_an_error(
    client: httpx2.AsyncClient, repositories: GitServer, work: Path, source: dict[str, Any], reason: str
) -> None:
    folder = repositories.folder / "r"
    folder.mkdir()
    (folder / "link").symlink_to("/etc")
    url = repository(repositories, "r", {"one/SKILL.md": ONE, "empty/file": ""})
    await configure(client, work, "mine", {"type": "git", "source": url, **source})
    assert reason in await refusal(client, work)
    assert not (work / ".agents").exists()
    assert (await client.get("/v1/sessions")).json()["sessions"] == []


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "../../../../etc/passwd", "docs/../../x"])
async def test_a_link_that_leaves_its_skill_is_an_error(
    client: httpx2.AsyncClient, repositories: GitServer, work: Path, target: str
) -> None:
    folder = repositories.folder / "r"
    write(folder, {"one/SKILL.md": ONE, "one/docs/x": "", "outside": "secret"})
    (folder / "one/link").symlink_to(target)
    url = repository(repositories, "r", {})
    await configure(client, work, "mine", {"type": "git", "source": url})
    assert f"the link link leads out of it, to {target}" in await refusal(client, work)


async def test_a_pipe_in_a_skill_is_an_error(client: httpx2.AsyncClient, tmp_path: Path, work: Path) -> None:
    write(tmp_path / "source", {"one/SKILL.md": ONE})
    os.mkfifo(tmp_path / "source/one/pipe")
    await configure(client, work, "mine", {"type": "local", "source": str(tmp_path / "source")})
    assert "pipe is neither a file nor a folder" in await refusal(client, work)


async def test_links_of_the_working_directory_do_not_lead_out_of_it(
    client: httpx2.AsyncClient, tmp_path: Path, work: Path
) -> None:
    write(tmp_path / "source", {"one/SKILL.md": ONE})
    (tmp_path / "out").mkdir()
    (work / ".agents").symlink_to(tmp_path / "out")
    await configure(client, work, "mine", {"type": "local", "source": str(tmp_path / "source")})
    response = await create(client, work)
    assert response.status_code == 502
    assert "can't be installed: permission denied" in response.json()["detail"]
    assert list_of(tmp_path / "out") == []
    (work / ".agents").unlink()
    (work / "inside").mkdir()
    (work / ".agents").symlink_to("inside")
    assert (await create(client, work)).status_code == 200
    assert (work / "inside/skills/one/SKILL.md").read_text() == ONE


def list_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_fs_root_excludes_local_sources(tmp_path: Path, work: Path) -> None:
    write(tmp_path / "source", {"one/SKILL.md": ONE})
    with our_server(tmp_path, "--fs-root", str(work)) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            await configure(client, work, "mine", {"type": "local", "source": str(tmp_path / "source")})
            assert "--fs-root" in await refusal(client, work)


async def test_without_git_a_repository_is_an_error(
    tmp_path: Path, repositories: GitServer, work: Path
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/sh")
    with our_server(tmp_path, env={"PATH": str(tools)}) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            await configure(client, work, "mine", {"type": "git", "source": url})
            assert "Git is not on PATH" in await refusal(client, work)


@pytest.fixture
def cache(tmp_path: Path) -> Repositories:
    return Repositories(tmp_path / "cache")


async def get(cache: Repositories, source: SkillSource, configured: float) -> Path:
    """Return the folder of a repository, which is not used any more."""
    async with cache.open(source, configured) as folder:
        return folder


def of(url: str) -> SkillSource:
    return SkillSource(type="git", source=url)


async def test_a_repository_that_is_too_large_is_an_error(
    cache: Repositories, repositories: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE, "one/zeros": "0" * 500_000})
    folder = repositories.folder / "big"
    folder.mkdir()
    (folder / "noise").write_bytes(os.urandom(500_000))
    commit(folder)
    monkeypatch.setattr(skill_sources, "MAX_SOURCE_BYTES", 200_000)
    with pytest.raises(SkillError, match="at most 200000 bytes"):  # small when it is packed
        await get(cache, of(url), 0)
    with pytest.raises(SkillError, match="can't be fetched"):
        await get(cache, of(f"{repositories.url}/big/.git"), 0)
    monkeypatch.setattr(skill_sources, "MAX_SOURCE_BYTES", 1_000_000)
    monkeypatch.setattr(skill_sources, "MAX_SOURCE_FILES", 1)
    with pytest.raises(SkillError, match="in 1 files"):
        await get(cache, of(url), 0)
    assert list_of(tmp_path / "cache") == []


async def test_a_repository_whose_server_hangs_is_an_error(
    cache: Repositories, repositories: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    repositories.hangs.set()
    monkeypatch.setattr(skill_sources, "FETCH_SECONDS", 0.5)
    with pytest.raises(SkillError, match=r"was not fetched within 0\.5 s"):
        await get(cache, of(url), 0)
    assert list_of(tmp_path / "cache") == []


async def test_a_session_does_not_wait_for_its_skills_for_ever(
    cache: Repositories, repositories: GitServer, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    repositories.hangs.set()
    monkeypatch.setattr(skills, "PROVIDE_SECONDS", 0.5)
    configured = {"mine": SkillsConfig(sources=[of(url)])}
    with pytest.raises(StreamError, match=r"'mine' of .* not fetched within 0\.5 s"):
        await Skills(FileTree(Places([], work)), cache).provide(str(work), "mock", configured, 0)
    assert list_of(tmp_path / "cache") == []


async def test_a_fetch_that_is_cancelled_leaves_nothing(
    cache: Repositories, repositories: GitServer, tmp_path: Path
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    repositories.hangs.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, cache, of(url), 0)
        await anyio.to_thread.run_sync(repositories.reached.wait)
        tasks.cancel_scope.cancel()
    assert list_of(tmp_path / "cache") == []


async def test_a_repository_is_fetched_again_after_an_hour(
    cache: Repositories, repositories: GitServer, tmp_path: Path
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    first = await get(cache, of(url), 0)
    assert await get(cache, of(url), 0) == first
    (state,) = (tmp_path / "cache").glob("*.json")
    fields = json.loads(state.read_text())
    for fetched in (time.time() - 3601, time.time() + 60):  # the clock was set back
        state.write_text(json.dumps({**fields, "time": fetched}))
        second = await get(cache, of(url), 0)
        assert second.name != fields["folder"]
        fields = json.loads(state.read_text())
    assert repositories.fetches == 3
    assert len(list_of(tmp_path / "cache")) == 2
    await get(cache, of(url), time.time() + 0.5)  # configured since
    assert repositories.fetches == 4


async def test_a_copy_stays_while_a_session_reads_it_and_another_server_fetches_it_again(
    cache: Repositories, repositories: GitServer, tmp_path: Path
) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    other = Repositories(tmp_path / "cache")
    async with cache.open(of(url), 0) as first:
        second = await get(other, of(url), time.time())
        assert second != first
        assert read(first) == ["one"]
        third = await get(cache, of(url), time.time())
        assert read(first) == ["one"]
    fourth = await get(other, of(url), time.time())
    assert [folder.is_dir() for folder in (first, second, third, fourth)] == [False, False, False, True]


def read(folder: Path) -> list[str]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return [skill.name for skill in read_skills(descriptor, None, None, "source")]
    finally:
        os.close(descriptor)


def test_a_skill_that_is_too_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"one/SKILL.md": ONE, "one/a": "0" * 100, "one/b": "0" * 100})
    monkeypatch.setattr(skill_files, "MAX_SKILL_BYTES", len(ONE) + 200)
    assert read(tmp_path) == ["one"]
    monkeypatch.setattr(skill_files, "MAX_SKILL_BYTES", len(ONE) + 199)
    with pytest.raises(SkillError, match="the skill one: it is larger than"):
        read(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(skill_files, "MAX_SKILL_FILES", 2)
    with pytest.raises(SkillError, match="more than 2 files"):
        read(tmp_path)


def test_the_skills_of_a_source_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"one/SKILL.md": ONE, "two/SKILL.md": ONE})
    monkeypatch.setattr(skill_files, "MAX_SKILLS_BYTES", 2 * len(ONE))
    assert read(tmp_path) == ["one", "two"]
    monkeypatch.setattr(skill_files, "MAX_SKILLS_BYTES", 2 * len(ONE) - 1)
    with pytest.raises(SkillError, match="name those to use"):
        read(tmp_path)


async def test_git_uses_the_proxy_of_the_sandbox(repositories: GitServer, tmp_path: Path) -> None:
    url = repository(repositories, "r", {"one/SKILL.md": ONE})
    cache = Repositories(tmp_path / "cache", lambda: {"http_proxy": "http://127.0.0.1:9"})
    with pytest.raises(SkillError, match="can't be fetched"):
        await get(cache, of(url), 0)
    assert repositories.fetches == 0


async def test_with_another_user_for_agents_their_own_file_names_no_skills(
    tmp_path: Path, work: Path
) -> None:
    write(tmp_path / "source", {"one/SKILL.md": ONE})
    config = ConfigFiles(FileTree(Places([], work)))
    user = User("other", os.geteuid() + 1, os.getegid(), (), "/")
    skills_ = Skills(FileTree(Places([], work)), Repositories(tmp_path / "cache"))
    folders = FolderConfiguration(config, AgentEnvironment(user=user), skills_)
    sources = SkillsConfig(sources=[SkillSource(type="local", source="../source")])
    config.change(str(work), SKILLS, "mine", sources)
    await folders.prepare(str(work), agent="mock", env={}, capabilities={})
    assert installed(work) == {"one/SKILL.md": ONE}
    if os.geteuid() != 0:
        pytest.skip("only root gives files to other users")
    os.chown(work / ".sandbox-agent/config/skills.json", user.uid, user.gid)
    with pytest.raises(InvalidRequestError, match="belongs to another user"):
        await folders.prepare(str(work), agent="mock", env={}, capabilities={})


def test_a_source_with_too_many_folders_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a/b/c/SKILL.md": ONE, "node_modules/x/SKILL.md": ONE})
    assert read(tmp_path) == ["c"]
    monkeypatch.setattr(skill_files, "MAX_FOLDERS", 3)
    with pytest.raises(SkillError, match="name the one with the skills as subpath"):
        read(tmp_path)


def test_of_several_skills_with_a_name_the_first_that_is_not_hidden_is_used(tmp_path: Path) -> None:
    files = {f"{folder}/one/SKILL.md": folder for folder in (".agents/skills", "skills", "templates")}
    write(tmp_path, files)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        (skill,) = read_skills(descriptor, None, None, "source")
    finally:
        os.close(descriptor)
    assert skill.entries["SKILL.md"].content == b"skills"


def test_a_name_that_is_no_folder_of_its_own_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {".hidden/SKILL.md": ONE})
    with pytest.raises(SkillError, match="can't be the name of a skill"):
        read(tmp_path)
