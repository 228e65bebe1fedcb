"""The hooks of the test session itself: leaks, skips under REQUIRE_ALL, signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 60
CONFTEST = "from tests.conftest import *\n"
LEAKS = """
    import asyncio
    import os
    import subprocess

    import pytest

    async def sleep_forever():
        await asyncio.Event().wait()

    async def fail():
        raise ValueError("late")

    @pytest.mark.anyio
    async def test_task():
        asyncio.get_running_loop().create_task(sleep_forever())

    @pytest.mark.anyio
    async def test_error_of_a_task():
        task = asyncio.get_running_loop().create_task(fail())
        await asyncio.sleep(0)
        task.again = task

    def test_file():
        file = open(os.devnull)
        cycle = [file]
        cycle.append(cycle)

    def test_file_in_a_fixture(tmp_path_factory, leaky):
        assert leaky

    @pytest.fixture
    def leaky():
        return open(os.devnull)

    @pytest.mark.anyio
    async def test_pipe():
        reader, _writer = os.pipe()
        await asyncio.get_running_loop().connect_read_pipe(asyncio.Protocol, os.fdopen(reader))

    def test_process():
        subprocess.Popen(["sleep", "0.1"])

    def test_failed():
        file = open(os.devnull)
        assert False

    @pytest.mark.anyio
    async def test_clean():
        task = asyncio.get_running_loop().create_task(sleep_forever())
        task.cancel()
"""


def run_pytest(folder: Path, source: str, *options: str, **environment: str) -> dict[str, set[str]]:
    """Run pytest with our hooks, and return the names of the tests by how they ended."""
    (folder / "conftest.py").write_text(CONFTEST)
    lines = source.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    (folder / "test_it.py").write_text("\n".join(line[indent:] for line in lines))
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nmarkers = anyio\n")
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:asyncio", *options]
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "REQUIRE_ALL"))
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    outcomes: dict[str, set[str]] = {}
    for outcome, name in re.findall(r"^([A-Z]+) .*test_it\.py(?:::|:\d+: )?(\w*)", done.stdout, re.MULTILINE):
        outcomes.setdefault(outcome, set()).add(name)
    assert outcomes, done.stdout + done.stderr
    return outcomes


@pytest.fixture(scope="module")
def leaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    return run_pytest(tmp_path_factory.mktemp("leaks"), LEAKS)


@pytest.mark.parametrize(
    "name",
    [
        "test_task",
        "test_error_of_a_task",
        "test_file",
        "test_file_in_a_fixture",
        "test_pipe",
        "test_process",
        "test_failed",
    ],
)
def test_a_test_that_leaks_fails_itself(leaks: dict[str, set[str]], name: str) -> None:
    assert name in leaks["ERROR"] | leaks["FAILED"]


def test_a_test_after_one_that_leaks_does_not_fail(leaks: dict[str, set[str]]) -> None:
    assert "test_clean" in leaks["PASSED"]
    assert "test_clean" not in leaks["ERROR"] | leaks["FAILED"]


SKIPS = """
    import pytest

    def test_passes():
        pass

    def test_skips():
        pytest.skip("no tool")

    @pytest.mark.skipif(True, reason="no tool")
    def test_is_marked():
        pass

    @pytest.mark.xfail
    def test_is_expected_to_fail():
        assert False
"""


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_skip_fails_under_require_all(tmp_path: Path, options: tuple[str, ...]) -> None:
    outcomes = run_pytest(tmp_path, SKIPS, *options, REQUIRE_ALL="1")
    assert outcomes["FAILED"] == {"test_skips"}
    assert outcomes["ERROR"] == {"test_is_marked"}
    assert outcomes["PASSED"] == {"test_passes"}
    assert outcomes["XFAIL"] == {"test_is_expected_to_fail"}
    assert "SKIPPED" not in outcomes


def test_a_skip_is_a_skip_otherwise(tmp_path: Path) -> None:
    outcomes = run_pytest(tmp_path, SKIPS)
    assert outcomes["PASSED"] == {"test_passes"}
    assert "SKIPPED" in outcomes
    assert "FAILED" not in outcomes


def test_a_module_that_skips_itself_fails_under_require_all(tmp_path: Path) -> None:
    source = "    import pytest\n    pytest.skip('no tool', allow_module_level=True)\n"
    assert "ERROR" in run_pytest(tmp_path, source, REQUIRE_ALL="1")


SIGNALS = """
    import signal
    import subprocess
    import sys

    PROGRAM = (
        "import signal; "
        "print([s.name for s in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP) "
        "if signal.getsignal(s) is signal.SIG_IGN], signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    )

    def test_children_have_the_default_signals():
        assert subprocess.check_output([sys.executable, "-c", PROGRAM], text=True) == "[] set()\\n"
"""


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_signals_that_the_caller_ignores_or_blocks_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    changed = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in changed}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        outcomes = run_pytest(tmp_path, SIGNALS, *options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert outcomes == {"PASSED": {"test_children_have_the_default_signals"}}


def test_make_quick_names_paths_that_exist() -> None:
    (paths,) = re.findall(r"^QUICK := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [path for path in paths.replace("\\", " ").split() if not (ROOT / path).exists()] == []
