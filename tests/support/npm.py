"""The published npm packages that we are wire-compatible with, in a cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import platformdirs

__all__ = ["CLAUDE_AGENT", "PEERS", "NpmMissingError", "node_modules", "rust_server"]

# Versions are pinned: what we say of them was measured and tested with these.
PEERS = {
    "sandbox-agent": "0.4.2",
    "@sandbox-agent/cli-linux-x64": "0.4.2",
    "@agentclientprotocol/sdk": "2.4.0",
    "better-sqlite3": "12.11.1",
}
# The newest line that runs on Node 20.
CLAUDE_AGENT = {"@agentclientprotocol/claude-agent-acp": "0.49.0"}
INSTALL_SECONDS = 900


class NpmMissingError(RuntimeError):
    """There is no npm on this machine."""


def cache_folder() -> Path:
    """Return where downloads are kept: outside the checkout, so that a fresh clone finds them."""
    return Path(
        os.environ.get("SANDBOX_AGENT_TEST_CACHE") or platformdirs.user_cache_path("sandbox-agent-tests")
    )


def node_modules(packages: dict[str, str]) -> Path:
    """Return a node_modules folder with these packages, installed once per set of versions.

    Raises:
        NpmMissingError: npm or node is not on PATH.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise NpmMissingError("npm and node are not on PATH: install Node 20 or newer to run this")
    manifest = json.dumps({"private": True, "dependencies": packages}, sort_keys=True)
    folder = cache_folder() / f"npm-{hashlib.sha256(manifest.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "installed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once install once
        if not done.exists():
            (folder / "package.json").write_text(manifest)
            command = [
                "npm",
                "install",
                "--prefix",
                str(folder),
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
            ]
            subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_SECONDS)
            done.touch()
    return folder / "node_modules"


def rust_server() -> Path:
    """Return the published server's binary.

    Raises:
        NpmMissingError: npm is not on PATH.
    """
    binary = node_modules(PEERS) / "@sandbox-agent/cli-linux-x64/bin/sandbox-agent"
    binary.chmod(0o755)
    return binary
