"""What ``from sandbox_agent import SandboxAgent`` imports, and what it costs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import pytest

IMPORT = "from sandbox_agent import SandboxAgent"
# What the extra ``server`` installs, and other extras.
NOT_IMPORTED = {
    *("starlette", "uvicorn", "uvloop", "httptools", "websockets", "jinja2", "markdown_it", "pyte"),
    *("rich", "asyncpg", "redis", "cryptography", "opentelemetry", "pydantic", "sqlite3"),
}
MAX_SECONDS = 0.3


def test_importing_the_client_imports_no_package_of_the_server_or_of_an_extra() -> None:
    script = f"import json, sys; {IMPORT}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules: list[str] = json.loads(done.stdout)
    assert NOT_IMPORTED & {name.partition(".")[0] for name in modules} == set()
    rooms = {name.split(".")[1] for name in modules if name.startswith("sandbox_agent.")}
    assert rooms & {"server", "runtime", "agents", "cli", "testing"} == set()


@pytest.mark.soak
def test_importing_the_client_costs_300_ms_at_most() -> None:
    """Processor time, the median of 10 processes: on a busy machine, the time that passes is no measure."""
    seconds: list[float] = []
    for _ in range(10):
        before = os.times()
        subprocess.run([sys.executable, "-c", IMPORT], check=True)
        after = os.times()
        user = after.children_user - before.children_user
        seconds.append(user + after.children_system - before.children_system)
    median = statistics.median(seconds)
    print(f"import: {median * 1000:.0f} ms of processor time")
    assert median <= MAX_SECONDS
