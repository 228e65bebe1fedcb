"""The log in a file."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

WRITES = """
import logging, os, sys
from pathlib import Path
from sandbox_agent.cli import logs
logs.LOG_BYTES = 10_000
path = Path(sys.argv[1])
output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.dup2(output, 2)
logs.configure_logging("info", "text", secrets=["s3cret-word"], file=path)
for number in range(1000):
    logging.getLogger("test").info("line %d with s3cret-word", number)
print("from elsewhere", file=sys.stderr, flush=True)
"""


def test_a_log_file_has_a_limit_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "folder/log"
    path.parent.mkdir()
    subprocess.run([sys.executable, "-c", WRITES, str(path)], check=True, timeout=60)
    assert sorted(each.name for each in path.parent.iterdir()) == ["log", "log.1"]
    for each in path.parent.iterdir():
        assert (each.stat().st_size < 10_200, stat.S_IMODE(each.stat().st_mode)) == (True, 0o600)
        assert "s3cret-word" not in each.read_text()
    lines = path.read_text().splitlines()
    assert lines[-1] == "from elsewhere"
    assert lines[-2].endswith("line 999 with [redacted]")


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sandbox_agent", "server", "--log-file", f"{tmp_path}/log/x"]
    (tmp_path / "log").touch()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, f"the log file '{tmp_path}/log/x' can't be opened" in done.stderr) == (64, True)
