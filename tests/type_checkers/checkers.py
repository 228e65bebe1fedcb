"""pyright and mypy, both strict, over programs that use the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["CHECKERS", "Finding", "check", "expected", "mypy"]

CHECKERS = ("pyright", "mypy")
_EXPECTED = "# error"
_MYPY_LINE = re.compile(r"^([^:]+):(\d+): error: (.*)$")


class Finding(NamedTuple):
    """What a checker says about a line."""

    file: str
    line: int
    message: str


def check(checker: str, folder: Path) -> list[Finding]:
    """Return what a checker finds in the files of a folder."""
    return _pyright(folder) if checker == "pyright" else mypy(folder)


def mypy(folder: Path, *more: str) -> list[Finding]:
    """Return what mypy finds in the files of a folder, with more options if there are any."""
    # From a folder without a configuration. Reading the package takes longer than checking the files: the
    # cache is kept for the next run.
    cache = Path(__file__).parents[2] / "build/mypy" / str(len(more))
    options = ["--strict", "--no-error-summary", "--no-pretty", "--cache-dir", str(cache), *more]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *sorted(path.name for path in folder.glob("*.py"))],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [match for line in done.stdout.splitlines() if (match := _MYPY_LINE.match(line))]
    assert done.returncode == (1 if found else 0), f"{done.stdout}\n{done.stderr}"
    return [Finding(match[1], int(match[2]), match[3]) for match in found]


def _pyright(folder: Path) -> list[Finding]:
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "-p", str(folder)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == len([*folder.glob("*.py")])
    return [
        Finding(Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in found["generalDiagnostics"]
        if each["severity"] == "error"
    ]


def expected(code: str) -> list[int]:
    """Return the lines that end with the comment ``# error``."""
    return [number for number, line in enumerate(code.splitlines(), 1) if line.endswith(_EXPECTED)]
