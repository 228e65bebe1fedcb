"""Checks of this machine: Python, folders, the store, programs, limits and settings of the network."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from sandbox_agent.agents.launch import data_dir
from sandbox_agent.cgroups import CgroupError, find_parents
from sandbox_agent.cli.doctor_findings import Finding, ok, problem, warning
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.open import parse_store_url

_MIB: Final = 1024 * 1024
_LITTLE_DISK, _NO_DISK = 1024 * _MIB, 100 * _MIB
_LITTLE_MEMORY: Final = 1024 * _MIB
_FEW_FILES, _FEW_TASKS = 1024, 256
_FEW_WATCHES, _FEW_INSTANCES = 8192, 64
_TOOL_SECONDS: Final = 10
# The extras that commands and servers use; the others are libraries of services and stores.
_USED_EXTRAS: Final = {
    "server": "to run a server",
    "cli": "for tables and progress on terminals",
    "terminal": "for 'exec -t' and sdk.processes.terminal()",
}
_PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")


def check_python() -> Iterator[Finding]:
    """Name this Python and this package, and check its extras."""
    package = distribution("sandbox-agent-py")
    yield ok(
        "python",
        f"Python {platform.python_version()} ({sys.executable}), SQLite {sqlite3.sqlite_version}, "
        f"sandbox-agent-py {package.version}",
    )
    installed = [name for name in package.metadata.get_all("Provides-Extra") or () if _has_extra(name)]
    yield ok("extras", ", ".join(installed) or "none")
    for name, purpose in _USED_EXTRAS.items():
        if name not in installed:
            advice = f"run pip install 'sandbox-agent-py[{name}]'"
            yield warning("extras", f"the extra '{name}' is not installed: it is needed {purpose}", advice)


def _has_extra(extra: str) -> bool:
    """Return whether the distributions that an extra adds are installed."""
    marks = (f"extra == '{extra}'", f'extra == "{extra}"')
    for requirement in distribution("sandbox-agent-py").requires or ():
        needed, _, marker = requirement.partition(";")
        if not marker.strip().endswith(marks) or not _applies(marker):
            continue
        name = needed.strip().split("[")[0]
        for character in "<>=!~ ":
            name = name.split(character)[0]
        try:
            distribution(name)
        except PackageNotFoundError:
            return False
    return True


def _applies(marker: str) -> bool:
    # The markers of this package's own extras.
    return not (
        ("platform_python_implementation" in marker and platform.python_implementation() != "CPython")
        or ("sys_platform != 'win32'" in marker.replace('"', "'") and sys.platform == "win32")
    )


def check_folder() -> Iterator[Finding]:
    """Check that the folder for data is this user's, writable and private."""
    folder = data_dir()
    if not folder.exists():
        parent = next(each for each in folder.parents if each.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield ok("data folder", f"{folder} will be made")
        else:
            yield problem("data folder", f"{folder} can't be made", f"make '{parent}' writable for this user")
        return
    status = folder.stat()
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = f"run chown -R {os.getuid()} on it, or set XDG_DATA_HOME"
        yield problem("data folder", f"{folder} is not writable for this user", advice)
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield problem("data folder", f"other users can write to {folder}", f"run chmod go-w '{folder}'")
    else:
        yield ok("data folder", str(folder))
    for path in sorted(folder.glob("server.db*")):
        if path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield warning("data folder", f"other users can open {path}", f"run chmod 600 '{path}'")


def check_store(store: str) -> Iterator[Finding]:
    """Check that a store can be opened and written; a database is not connected to.

    Args:
        store: the store's URL.
    """
    try:
        url = parse_store_url(store)
    except InvalidRequestError as error:
        yield problem("store", str(error), "correct --store or SANDBOX_AGENT_STORE")
        return
    if url.path is None:
        yield ok("store", f"{url.shown}" + ("" if url.kind == "memory" else ": not connected to"))
        return
    path = url.path.expanduser().absolute()
    folder = next(each for each in path.parents if each.exists())
    targets = [each for each in (path, folder) if each.exists()]
    if refused := [each for each in targets if not os.access(each, os.W_OK)]:
        yield problem("store", f"'{refused[0]}' is not writable for this user", "correct its owner or mode")
    elif not folder.is_dir():
        yield problem("store", f"'{folder}' is not a folder", "name another file with --store")
    elif why := _why_not_opened(path):
        yield problem("store", f"'{path}' can't be opened: {why}", "name another file, or restore a backup")
    else:
        yield ok("store", f"{path}{'' if path.exists() else ' will be made'}")
    free = shutil.disk_usage(folder).free
    shown = f"{free // _MIB} MiB are free at {folder}"
    if free < _LITTLE_DISK:
        find = problem if free < _NO_DISK else warning
        yield find("disk", shown, "free some space, or limit the store with --retain-bytes")
    else:
        yield ok("disk", shown)


def _why_not_opened(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        # A server has it.
        return None if "locked" in str(error) else str(error)
    except sqlite3.Error as error:
        return str(error)
    return None


def check_port(port: int) -> Iterator[Finding]:
    """Check that the server's port is free, or that a server of this kind has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            yield problem("port", f"this user may not listen on port {port}", "pass --port to the server")
            return
        except OSError:
            from sandbox_agent.cli.daemon_start import why_unhealthy

            if why_unhealthy("127.0.0.1", port) is None:
                yield ok("port", f"a server answers on port {port}")
            else:
                yield warning(
                    "port", f"another program has port {port}", "end it, or pass --port to the server"
                )
            return
    yield ok("port", f"{port} is free")


def check_tools() -> Iterator[Finding]:
    """Check the programs that agents and sandboxes use."""
    if version := _output("git", "--version"):
        yield ok("git", version.removeprefix("git version "))
    else:
        advice = "install it, for example with apt install git"
        yield warning("git", "git does not run: agents, diffs and skills need it", advice)
    for engine in ("docker", "podman"):
        if shutil.which(engine) is None:
            yield ok(engine, f"not installed: needed for {engine}() only")
        elif os.environ.get("DOCKER_HOST", "unix:").startswith("unix:"):
            if version := _output(engine, "version", "--format", "{{.Server.Version}}"):
                yield ok(engine, version)
            else:
                advice = f"start it, and check that this user may use it: {engine} version"
                yield warning(engine, f"{engine} is installed and does not answer", advice)
        else:
            yield ok(engine, "of another machine (DOCKER_HOST): not asked")
    if sys.platform != "linux":
        return
    if shutil.which("bwrap") is None:
        yield ok("bubblewrap", "not installed: needed for jail() only")
    elif _output("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true") is None:
        advice = "allow unprivileged user namespaces, or use another sandbox"
        yield warning("bubblewrap", "bwrap can't make a sandbox here: jail() will not work", advice)
    else:
        yield ok("bubblewrap", (_output("bwrap", "--version") or "").removeprefix("bubblewrap "))


def _output(*command: str) -> str | None:
    """Return what a program says; None if it is missing or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - programs on PATH
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_TOOL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def check_limits() -> Iterator[Finding]:
    """Check the limits of open files, memory, processes and watches."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _FEW_FILES:
        yield warning(
            "open files", f"at most {files} may be open", f"raise the limit, up to {most}: ulimit -n"
        )
    if sys.platform != "linux":
        return
    memory, tasks = _cgroup_limit("memory.max"), _cgroup_limit("pids.max")
    shown = (
        f"memory {'unlimited' if memory is None else f'{memory // _MIB} MiB'}, "
        f"processes {'unlimited' if tasks is None else tasks}"
    )
    if (memory or _LITTLE_MEMORY) < _LITTLE_MEMORY or (tasks or _FEW_TASKS) < _FEW_TASKS:
        advice = f"give the sandbox at least {_LITTLE_MEMORY // _MIB} MiB and {_FEW_TASKS} processes"
        yield warning("cgroup", f"{shown}: agents may be killed", advice)
    else:
        yield ok("cgroup", shown)
    try:
        find_parents(("memory", "pids"))
    except CgroupError as error:
        yield ok("cgroup", f"limits per agent are polled, not enforced by the kernel: {error}")
    watches, instances = _setting("max_user_watches"), _setting("max_user_instances")
    if watches < _FEW_WATCHES or instances < _FEW_INSTANCES:
        yield warning(
            "inotify",
            f"{watches} watches and {instances} instances for this user: watching folders may fail",
            "run sysctl fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=256",
        )
    else:
        yield ok("inotify", f"{watches} watches, {instances} instances")


def _cgroup_limit(name: str) -> int | None:
    """Return the smallest limit of this process's group and those above it; None for none."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    root = Path("/sys/fs/cgroup")
    found: list[int] = []
    for folder in (root / own, *(root / own).parents):
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found, default=None)


def _setting(name: str) -> int:
    try:
        return int(Path(f"/proc/sys/fs/inotify/{name}").read_text())
    except (OSError, ValueError):
        return 0


def check_network_settings() -> Iterator[Finding]:
    """Name the variables of proxies, and check those of certificates. Values may have passwords."""
    names = [name for each in _PROXIES for name in (each, each.lower()) if os.environ.get(name)]
    yield ok("proxy", ", ".join(names) if names else "none is set")
    for name in _CERTIFICATES:
        value = os.environ.get(name)
        if value and not os.access(value, os.R_OK):
            advice = f"correct or unset {name}: TLS connections fail with it"
            yield problem("certificates", f"{name} names '{value}', which can't be read", advice)
        elif value:
            yield ok("certificates", f"{name}={value}")
