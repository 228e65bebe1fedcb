"""The SDK without async, in threads, callbacks, scripts and forked processes."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import threading
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import sandbox_agent
from sandbox_agent import sync
from sandbox_agent.sync.portal import portal
from tests.support.servers import ServerProcess, our_server

CLASSES = [
    sandbox_agent.Files,
    sandbox_agent.FolderConfig,
    sandbox_agent.ProcessTerminal,
    sandbox_agent.Processes,
    sandbox_agent.SandboxAgent,
    sandbox_agent.ServerSessions,
    sandbox_agent.Session,
    sandbox_agent.Turn,
]
STUB = Path(__file__).parents[2] / "scripts/sync_stub.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with our_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def sdk(server: ServerProcess) -> Generator[sync.SandboxAgent]:
    with sync.SandboxAgent.connect(base_url=server.url) as connected:
        yield connected


def is_async(value: object) -> bool:
    return (
        inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value) or inspect.isawaitable(value)
    )


@pytest.mark.parametrize("source", CLASSES, ids=lambda source: source.__name__)
def test_every_public_member_is_there_without_async(source: type) -> None:
    target = getattr(sync, source.__name__)
    for name in dir(source):
        if not name.startswith("_") and name != "aclose":
            assert not is_async(inspect.getattr_static(target, name)), name
            assert inspect.getdoc(getattr(target, name)) == inspect.getdoc(getattr(source, name)), name
    for method, own in {"__aenter__": "__enter__", "__aiter__": "__iter__", "__await__": "wait"}.items():
        assert not hasattr(source, method) or hasattr(target, own)


def test_every_class_with_async_has_one_without() -> None:
    handles = {
        found.__name__
        for name in sandbox_agent.__all__
        if inspect.isclass(found := getattr(sandbox_agent, name))
        and found.__module__.startswith("sandbox_agent.client.")
        and any(is_async(value) for _, value in inspect.getmembers(found))
    }
    assert handles - {"EventSink", "PostgresSink", "RedisSink", "SQLiteSink", "Viewer"} == {
        each.__name__ for each in CLASSES
    }
    assert sync.SandboxAgentClient is sync.SandboxAgent
    assert sync.SQLiteSessionPersistDriver is sandbox_agent.SQLiteSessionPersistDriver
    assert set(dir(sync)) == {*sandbox_agent.__all__, "EventIterator"}


def test_the_types_are_those_of_the_sdk() -> None:
    done = subprocess.run([sys.executable, str(STUB), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_session_is_created_prompted_listed_and_destroyed(sdk: sync.SandboxAgent) -> None:
    session = sdk.create_session(agent="mock")
    assert isinstance(session, sync.Session)
    assert session.prompt("echo hello").stop_reason == "end_turn"
    assert sdk.list_sessions().items == [session]
    assert sdk.get_session(session.id) is session
    session.set_model("mock-fast")
    assert sdk.destroy_session(session.id) is session


def test_a_turn_is_iterated_over_or_waited_for(sdk: sync.SandboxAgent) -> None:
    session = sdk.create_session(agent="mock")
    turn = session.stream("echo hello")
    assert {event.sender for event in turn} == {"client", "agent"}
    assert turn.response is not None
    assert session.stream("echo again").wait().stop_reason == "end_turn"
    stopped = session.stream("stream 20 5")
    next(stopped)
    stopped.close()
    assert list(stopped) == []


def test_listeners_and_policies_may_use_the_client(sdk: sync.SandboxAgent) -> None:
    session = sdk.create_session(agent="mock")
    seen: list[tuple[str, int]] = []
    done = threading.Event()

    def listen(event: sandbox_agent.SessionEvent) -> None:
        page = sdk.get_events(session_id=session.id, limit=1)
        seen.append((event.id, len(page.items)))
        if "response" in str(event.payload) or "stopReason" in str(event.payload):
            done.set()

    def decide(request: Any) -> Any:
        assert sdk.get_health().status == "ok"
        assert request.session_id == session.id
        return "reject"

    stop = session.on_event(listen)
    session.permission_policy = decide
    session.prompt("permission")
    assert done.wait(20)
    stop()
    count = len(seen)
    assert count >= 5
    assert {found for _, found in seen} == {1}
    session.prompt("echo not seen")
    assert len(seen) == count


def test_server_sessions_files_and_processes(sdk: sync.SandboxAgent, tmp_path: Path) -> None:
    sdk.sessions.create("sync", agent="mock")
    assert [event.type for event in sdk.sessions.stream_turn("sync", "echo hi")][-1] == "turn.ended"
    assert "sync" in [info.session_id for info in sdk.sessions.iterate()]
    sdk.files.write(str(tmp_path / "a.txt"), "hello")
    assert b"".join(sdk.files.stream(str(tmp_path / "a.txt"))) == b"hello"
    sent: list[int] = []
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b.txt").write_text("more")
    sdk.files.upload_dir(
        tmp_path / "folder", str(tmp_path / "copy"), progress=lambda done, _: sent.append(done)
    )
    assert (tmp_path / "copy/b.txt").read_text() == "more"
    assert sent
    with sdk.files.watch(str(tmp_path)) as batches:
        (tmp_path / "new.txt").write_text("")
        assert str(tmp_path / "new.txt") in {change.path for change in next(batches)}
    assert sdk.processes.run("echo", ["hi"]).stdout == "hi\n"
    process = sdk.processes.create("sh", ["-c", "read line; echo $line"], tty=True)
    with sdk.processes.terminal(process.id) as terminal:
        terminal.send_input("typed\n")
        assert b"typed" in b"".join(terminal)
        assert terminal.wait() == 0


def test_a_policy_that_is_an_object_is_called_in_a_thread_and_can_be_set_again(
    sdk: sync.SandboxAgent,
) -> None:
    class Policy:
        calls = 0

        def __call__(self, request: Any) -> Any:
            self.calls += 1
            assert sdk.get_health().status == "ok"
            return "once"

    session = sdk.create_session(agent="mock")
    for policy in (Policy(), Policy().__call__):
        session.permission_policy = policy
        assert session.permission_policy == policy
        session.permission_policy = session.permission_policy
        assert "granted" in session.ask("permission")


def test_policies_that_wait_hold_up_no_other_client(sdk: sync.SandboxAgent, server: ServerProcess) -> None:
    answer, waiting = threading.Event(), threading.Semaphore(0)

    def wait(_request: Any) -> Any:
        waiting.release()
        assert answer.wait(30)
        return "once"

    def prompt() -> None:
        session = sdk.create_session(agent="mock", permission_policy=wait)
        session.prompt("permission")

    threads = [threading.Thread(target=prompt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=30)
    with sync.SandboxAgent.connect(base_url=server.url.replace("127.0.0.1", "localhost")) as other:
        assert other.get_health().status == "ok"
    answer.set()
    for thread in threads:
        thread.join()


def test_a_program_ends_while_a_policy_waits(server: ServerProcess) -> None:
    done = run_script(
        """
import threading
asked = threading.Event()
def policy(request):
    asked.set()
    threading.Event().wait()
sdk = SandboxAgent.connect(base_url=url)
session = sdk.create_session(agent="mock", permission_policy=policy)
turn = session.stream("permission")
next(turn)
asked.wait(20)
print("end")
""",
        server.url,
    )
    assert (done.stdout, done.returncode) == ("end\n", 0)


def test_what_is_not_used_any_more_is_freed(sdk: sync.SandboxAgent) -> None:
    turn = sdk.create_session(agent="mock").stream("echo hello")
    turn.wait()
    found = weakref.ref(turn)
    del turn
    gc.collect()
    assert found() is None


def test_errors_are_those_of_the_sdk(sdk: sync.SandboxAgent) -> None:
    with pytest.raises(sandbox_agent.SessionNotFoundError):
        sdk.resume_session("unknown")
    with pytest.raises(ValueError, match="base_url"):
        sync.SandboxAgent.connect()


def test_threads_share_a_client(sdk: sync.SandboxAgent) -> None:
    results: list[str] = []

    def work(number: int) -> None:
        session = sdk.create_session(agent="mock")
        results.append(session.prompt(f"echo {number}").stop_reason)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["end_turn"] * 4


def test_a_call_from_the_event_loop_is_refused(sdk: sync.SandboxAgent) -> None:
    async def call() -> None:
        sdk.get_health()

    with pytest.raises(RuntimeError, match="use the async SDK there"):
        portal().run(call)


def run_script(text: str, url: str, *, ctrl_c_after: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script; send it SIGINT when it has printed a line."""
    script = f"import os, sys\nfrom sandbox_agent.sync import SandboxAgent\nurl = {url!r}\n{text}"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        while ctrl_c_after is not None and ctrl_c_after not in said:
            said += process.stdout.readline()
        if ctrl_c_after is not None:
            process.send_signal(2)
        rest, errors = process.communicate(timeout=30)
    return subprocess.CompletedProcess(script, process.returncode, said + rest, errors)


def test_ctrl_c_cancels_the_turn_and_the_client_goes_on(server: ServerProcess) -> None:
    done = run_script(
        """
with SandboxAgent.connect(base_url=url) as sdk:
    session = sdk.create_session(agent="mock")
    session.on_event(lambda event: print(event.payload.get("method"), flush=True))
    try:
        session.prompt("stall")
    except KeyboardInterrupt:
        print("interrupted,", session.prompt("echo again").stop_reason, flush=True)
""",
        server.url,
        ctrl_c_after="session/prompt",
    )
    assert "interrupted, end_turn\n" in done.stdout
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_script_that_closes_nothing_ends(server: ServerProcess) -> None:
    done = run_script(
        "sdk = SandboxAgent.connect(base_url=url)\n"
        "session = sdk.create_session(agent='mock')\n"
        "print(next(session.stream('stream 1000 50')).sender)\n",
        server.url,
    )
    assert (done.stdout, done.returncode) == ("client\n", 0)


def test_a_client_of_the_parent_process_is_refused_in_a_fork(server: ServerProcess) -> None:
    done = run_script(
        """
sdk = SandboxAgent.connect(base_url=url)
print(sdk.get_health().status, flush=True)
if os.fork() == 0:
    try:
        sdk.get_health()
    except RuntimeError as error:
        print(error, flush=True)
    with SandboxAgent.connect(base_url=url) as own:
        print(own.get_health().status, flush=True)
    os._exit(0)
os.wait()
sdk.dispose()
""",
        server.url,
    )
    first, refused, own = done.stdout.splitlines()
    assert (first, own, done.returncode) == ("ok", "ok", 0)
    assert "another process" in refused
