"""The jail provider: a local server and its agents in namespaces of their own, made by bubblewrap.

They see the system read-only, a home of their own and the workspace, and no other file or process of the
machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack, cast

import httpx2
import platformdirs

from sandbox_agent.cgroups import Cgroup
from sandbox_agent.egress.allow_list import AllowList
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.keywords import check_keywords, keywords
from sandbox_agent.providers.egress_process import PROXY_VARIABLES, SOCKET, EgressProcess
from sandbox_agent.providers.jail_limits import (
    Limits,
    check_limits,
    create_jail_group,
    remove_jail_group,
)
from sandbox_agent.providers.local import LocalOptions, LocalProvider, ServerOptions
from sandbox_agent.providers.mounts import Mount, checked_mount, existing_path
from sandbox_agent.providers.server_process import PACKAGE_ROOT
from sandbox_agent.providers.unix_transport import UnixTransport

HOME = "/home/agent"
WORKSPACE = "/workspace"
# In the jail; its folder on the host is the only one that both sides write to, besides workspace and home.
_SOCKET_FOLDER = "/run/sandbox-agent"
_SOCKET = "server.sock"
# The folder of the proxy's socket on the host, and in the jail, where it is read-only.
_PROXY = "net"
_PROXY_FOLDER = "/run/sandbox-agent-proxy"
# Of sockaddr_un in unix(7), without the byte that ends it.
_SOCKET_PATH_BYTES = 107
_PREFIX = "sandbox-agent-jail-"
_LOCK = "lock"
_USER = 1000
# What programs read to find libraries, certificates, hosts, users and the time. The rest of /etc may have
# secrets, which a jail that root starts could read.
_ETC = (
    *("alternatives", "bash.bashrc", "ca-certificates", "ca-certificates.conf", "crypto-policies"),
    *("debian_version", "default/locale", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
    *("locale.alias", "localtime", "magic", "mime.types", "nsswitch.conf", "os-release", "pki/ca-trust"),
    *("pki/tls/cert.pem", "pki/tls/certs", "profile", "protocols", "resolv.conf", "services", "shells"),
    *("ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone"),
)
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_PASSWD = f"agent:x:{_USER}:{_USER}::{HOME}:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
_GROUP = f"agent:x:{_USER}:\nnogroup:x:65534:\n"
# Of the host's environment; in the jail they name what is not there.
_HOST_ONLY = ("SSH_AUTH_SOCK", "SSH_AGENT_PID", "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY")


class _Folder:
    """The folder of a jail: its home, its socket and, if none is given, its workspace.

    A lock shows that it is in use. The server has it, too, so that the folder lasts as long as both.
    """

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        _delete_left_folders()
        self.path: Path = path
        # It has its name when it is locked: a folder that is not is taken for one that was left.
        new = Path(tempfile.mkdtemp(prefix="sandbox-agent-new-"))
        self.lock: int = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        for name in ("home", "run", "workspace"):
            (new / name).mkdir(mode=0o700)
        (new / "passwd").write_text(_PASSWD)
        (new / "group").write_text(_GROUP)
        new.rename(path)
        try:
            self.group: Cgroup | None = create_jail_group(limits, path)
        except BaseException:
            self.delete()
            raise

    def delete(self) -> None:
        """Delete the folder."""
        try:
            _delete_folder(self.path)
        finally:
            os.close(self.lock)


def _folder_path(name: str) -> Path:
    return Path(tempfile.gettempdir(), f"{_PREFIX}{name}")


def _delete_left_folders() -> None:
    """Delete the folders of jails whose program was killed."""
    for path in _folder_path("").parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use
            if path.lstat().st_uid != os.geteuid():
                continue
            # Its lock may be deleted already: a folder gets its name when it is locked.
            lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete_folder(path)
            finally:
                os.close(lock)


def _delete_folder(path: Path) -> None:
    """Delete a folder whose content an agent has made: deep, or protected from writing."""
    remove_jail_group(path)
    # These programs have no limit of depth, and do not follow links.
    for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        subprocess.run([*command, "--", str(path)], check=False, stderr=subprocess.DEVNULL)  # noqa: S603


class JailOptions(ServerOptions, total=False):
    """The options of ``jail()``, which explains them."""

    workspace: str | os.PathLike[str] | None
    network: bool
    allow_hosts: Sequence[str] | None
    mounts: Sequence[Mount]
    limits: Limits | None


class JailProvider(LocalProvider):
    """Starts sandbox-agent servers in jails on this machine. Created by ``jail``."""

    name = "jail"
    default_cwd: str | None = WORKSPACE
    _ends_by_lifeline: bool = True

    def __init__(self, **options: Unpack[JailOptions]) -> None:
        """Store the options. See ``jail`` for the arguments."""
        check_keywords(options, JailOptions, self.name)
        workspace, network = options.pop("workspace", None), options.pop("network", True)
        allow_hosts, mounts = options.pop("allow_hosts", None), options.pop("mounts", ())
        limits, agents = options.pop("limits", None), options.pop("agents", None)
        if allow_hosts is not None:
            if not network:
                raise ValueError(
                    "network=False and allow_hosts exclude each other: without a network there is no host to "
                    "allow, so leave one of them out"
                )
            AllowList(allow_hosts)
            network = False  # but for the proxy
        found = _agents_file() if agents is None else existing_path(agents, "agents file")
        super().__init__(**cast(LocalOptions, {**options, "agents": found}))
        self._bubblewrap = _find_bubblewrap()
        self._workspace = None if workspace is None else existing_path(workspace, "workspace")
        self._network = network
        self._mounts = [checked_mount(mount) for mount in mounts]
        check_limits(limits)
        self._limits = limits
        self._folders: dict[str, _Folder] = {}
        self._allow_hosts = None if allow_hosts is None else list(allow_hosts)
        self._proxies: dict[str, EgressProcess] = {}

    def _new_id(self) -> str:
        return super()._new_id() if self._network else secrets.token_hex(4)

    def _prepare(self, raw_id: str) -> None:
        name = secrets.token_hex(4) if self._network else raw_id
        if not self._network and len(os.fsencode(self._socket(raw_id))) > _SOCKET_PATH_BYTES:
            raise SandboxAgentError(
                f"the path of the server's socket would be too long in '{tempfile.gettempdir()}': set TMPDIR "
                "to a folder with a shorter path"
            )
        folder = self._folders[raw_id] = _Folder(_folder_path(name), self._limits)
        if self._allow_hosts is not None:
            self._proxies[raw_id] = EgressProcess(folder.path / _PROXY, self._allow_hosts, self._log)

    async def _start(self, raw_id: str, token: str) -> None:
        proxy = self._proxies.get(raw_id)
        if proxy is not None:
            proxy.start()
        await super()._start(raw_id, token)
        if proxy is not None:
            await proxy.wait_responding()

    def proxy_pid(self, sandbox_id: str, /) -> int | None:
        """Return the process id of the proxy for the allowed hosts, or None without one."""
        proxy = self._proxies.get(sandbox_id)
        return None if proxy is None else proxy.pid

    async def ensure_server(self, sandbox_id: str, /) -> None:
        """Restart the server and the proxy if they have ended, with the same files."""
        if (proxy := self._proxies.get(sandbox_id)) is not None:
            proxy.start()
        await super().ensure_server(sandbox_id)

    def _address(self, raw_id: str) -> list[str]:
        if self._network:
            return super()._address(raw_id)
        proxy = [] if self._allow_hosts is None else ["--egress-proxy", f"unix:{_PROXY_FOLDER}/{SOCKET}"]
        return ["--uds", f"{_SOCKET_FOLDER}/{_SOCKET}", *proxy]

    def _command(self, raw_id: str) -> list[str]:
        folder = self._folders[raw_id].path
        workspace = self._workspace or folder / "workspace"
        options = [
            *("--unshare-user", "--uid", str(_USER), "--gid", str(_USER), "--disable-userns"),
            # The server is the first process: with it all others end, and no process of bubblewrap shows its
            # environment and its command line to agents.
            *("--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
            *("--hostname", "sandbox", *([] if self._network else ["--unshare-net"])),
            *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),  # noqa: S108
            *("--tmpfs", "/tmp", "--tmpfs", "/var/tmp", "--dir", "/run"),  # noqa: S108
            *_system_mounts(),
            *(
                "--ro-bind",
                str(folder / "passwd"),
                "/etc/passwd",
                "--ro-bind",
                str(folder / "group"),
                "/etc/group",
            ),
            *("--bind", str(folder / "home"), HOME, "--bind", str(folder / "run"), _SOCKET_FOLDER),
            *_installed_agents(),
            *_writable(workspace, WORKSPACE),
        ]
        if self._allow_hosts is not None:
            options += ["--ro-bind", str(folder / _PROXY), _PROXY_FOLDER]
        if self._agents is not None:
            options += ["--ro-bind", str(self._agents), str(self._agents)]
        for mount in self._mounts:
            source = Path(mount.source)
            options += (
                _writable(source, mount.target)
                if mount.writable
                else ["--ro-bind", str(source), mount.target]
            )
        options += ["--remount-ro", "/", "--chdir", WORKSPACE, "--"]
        command = [self._bubblewrap, *options, *super()._command(raw_id)]
        group = self._folders[raw_id].group
        return group.wrap(command) if group else command

    def _environment(self) -> dict[str, str]:
        environment = {
            name: value
            for name, value in super()._environment().items()
            if name in self._env or not (name in _HOST_ONLY or name.startswith("XDG_"))
        }
        if self._allow_hosts is not None:
            for name in PROXY_VARIABLES:  # of this machine: their passwords are of no use in the jail
                environment.pop(name, None)
        own = {
            "HOME": HOME,
            "USER": "agent",
            "LOGNAME": "agent",
            "SHELL": "/bin/bash",
            "TMPDIR": "/tmp",  # noqa: S108 - the jail's own
            "SANDBOX_AGENT_REQUIRE_PREINSTALL": "1",  # the installed agents are the host's, and read-only
        }
        return {**environment, **own, **self._env}

    def _descriptors(self, raw_id: str) -> list[int]:
        """Return what the server inherits: the lock of its folder."""
        return [os.dup(self._folders[raw_id].lock)]

    async def get_url(self, sandbox_id: str, /) -> str:
        """Return ``http://host:port``, or a URL for the transport if the jail has no network."""
        return await super().get_url(sandbox_id) if self._network else "http://sandbox"

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport | None:
        """Return the transport to the server's socket if the jail has no network."""
        if self._network:
            return None

        def check(connection: socket.socket) -> None:
            running = self._running.get(sandbox_id)
            if running is not None:
                _check_peer(connection, running.process.pid)

        return UnixTransport(self._socket(sandbox_id), check)

    def _socket(self, raw_id: str) -> Path:
        return _folder_path(raw_id) / "run" / _SOCKET

    async def _is_listening(self, raw_id: str) -> bool:
        if self._network:
            return await super()._is_listening(raw_id)
        try:
            _, writer = await asyncio.open_unix_connection(self._socket(raw_id))
        except OSError:
            return False
        writer.close()
        return True

    async def _stop(self, raw_id: str, grace: float) -> None:
        await super()._stop(raw_id, grace)
        proxy = self._proxies.pop(raw_id, None)
        if proxy is not None:
            await asyncio.to_thread(proxy.stop, grace)
        folder = self._folders.pop(raw_id, None)
        if folder is not None:
            await asyncio.to_thread(folder.delete)


def _check_peer(connection: socket.socket, bubblewrap: int) -> None:
    """Check that a server in the jail listens: an agent can put another socket in its place.

    Raises:
        OSError: The process that listens is not the first one of the jail, bubblewrap's child.
    """
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", found)
    parent = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    if parent != bubblewrap:
        raise ConnectionRefusedError(f"process {pid} listens on the jail's socket, and is not its server")


def _find_bubblewrap() -> str:
    if not sys.platform.startswith("linux"):
        raise SandboxAgentError(
            "jail() needs Linux: its isolation has not been tested with sandbox-exec of macOS or elsewhere. "
            "Use docker(), podman() or a sandbox at a service on this platform"
        )
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxAgentError(
            "jail() needs bubblewrap, whose command bwrap is not on PATH: install it, for example with "
            "'apt install bubblewrap'"
        )
    return found


def _system_mounts() -> Iterator[str]:
    """Yield bubblewrap's options for the system, Python and Node, all of which are read-only."""
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    for name in _ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    for path in _program_folders():
        yield from ("--ro-bind", str(path), str(path))


def _writable(source: Path, target: str) -> Iterator[str]:
    """Yield bubblewrap's options for a folder that agents write to.

    What runs outside of the jail, such as this program's Python environment, is read-only there. The folders
    on the way to it are mounted, too: then an agent cannot replace one of them.
    """
    yield from ("--bind", str(source), target)
    for path in _program_folders():
        if path.is_relative_to(source) and path != source:
            steps = path.relative_to(source).parts
            for count in range(1, len(steps)):
                step = Path(*steps[:count])
                yield from ("--bind", str(source / step), str(target / step))
            yield from ("--ro-bind", str(path), str(target / Path(*steps)))


def _program_folders() -> list[Path]:
    """Return what this Python, its packages and Node consist of, without what the system's folders contain.

    Raises:
        SandboxAgentError: One of them would show the user's home.
    """
    parts = [Path(sys.prefix), Path(sys.base_prefix), PACKAGE_ROOT]
    if node := shutil.which("node"):
        parts.append(_node_installation(Path(node)))
    home = Path.home().resolve()
    found: list[Path] = []
    for part in parts:
        if home.is_relative_to(part.resolve()):
            raise SandboxAgentError(
                f"the jail needs '{part}' for this Python, and that has your home: use a virtual environment "
                "in a folder of its own"
            )
        # Programs are found at their path, and what is protected at the one behind links.
        for path in (part, part.resolve()):
            if not any(path.is_relative_to(other) for other in (*map(Path, _SYSTEM), *found)):
                found.append(path)
    return found


def _node_installation(node: Path) -> Path:
    """Return the folder of Node, or only its program if it is not in one of its own."""
    folder = node.resolve().parent.parent
    is_own = node.resolve().parent.name == "bin" and (
        (folder / "lib/node_modules").is_dir() or (folder / "include/node").is_dir()
    )
    return folder if is_own else node


def _agents_file() -> Path | None:
    """Return the user's file with agents, which the server would not find in the jail."""
    named = os.environ.get("SANDBOX_AGENT_AGENTS")
    if named:
        return existing_path(named, "agents file")
    path = platformdirs.user_config_path("sandbox-agent", appauthor=False) / "agents.toml"
    return path if path.is_file() else None


def _installed_agents() -> Iterator[str]:
    """Yield bubblewrap's options for the host's agents, at their paths on the host and the jail's own."""
    data = os.environ.get("XDG_DATA_HOME", "")
    folder = (
        Path(data) / "sandbox-agent"
        if Path(data).is_absolute()
        else platformdirs.user_data_path("sandbox-agent", appauthor=False)
    )
    for name in ("bin", "agents"):
        if (folder / name).is_dir():
            # A launcher has the absolute paths of what it starts.
            for target in (folder / name, Path(HOME, ".local/share/sandbox-agent", name)):
                yield from ("--ro-bind", str(folder / name), str(target))


@keywords(JailOptions)
def jail(**options: Unpack[JailOptions]) -> JailProvider:
    """Return a provider that starts the server and its agents in a jail on this machine (Linux, bubblewrap).

    In the jail there are the system's programs, this Python, Node and the installed agents, all read-only;
    the workspace at ``/workspace``; and an empty home, which lasts as long as the sandbox. There are no other
    files of the machine, no processes of it, and no capabilities. The jail ends with this program, as
    ``local`` does.

    ``limits`` limits memory, processes and processors; disk space is not limited. With ``network=True`` and
    without ``allow_hosts`` agents reach what this machine reaches, services on its loopback addresses
    included. The kernel is shared: for code that may attack it, use a virtual machine.

    Args:
        workspace: The folder that agents work in and may write to, or None for an empty one, which is
            deleted with the sandbox.
        network: Whether there is a network. Without one, the server is reached over a Unix socket, and the
            sandbox id is ``jail/<name>``; with one it is ``jail/127.0.0.1:<port>``.
        allow_hosts: The hosts that agents may reach, or None for all. There is then no network but a proxy,
            which HTTPS_PROXY names: a name (``api.anthropic.com``), all names below one (``*.npmjs.org``) or
            an address, on the ports 443 and 80 or another one (``github.com:22``). Names must have an address
            of the internet, unless the list has it (``registry.corp.example=10.0.0.5``). The sandbox id is
            ``jail/<name>``. What is refused is a ``status`` item of the session.
        mounts: More files and folders of this machine.
        limits: What everything in the jail may use together, or None. This needs control groups that this
            program may create, as root may on most machines.
        port: The port, or None for a free one. Not without a network, and not with ``allow_hosts``.
        token: The bearer token, or None for a random one.
        env: Variables to add to the environment of the server and its agents. Of this program's other
            variables, agents get what ``local`` gives them with its policy "strict".
        log: Where its output goes: "inherit" (this program's stderr), "silent", or the path of a file.
        store: Its ``--store`` (``memory``, ``sqlite:PATH`` with a path in the jail).
        agents: A TOML file of this machine with more agents, or None for the user's, if there is one. What
            it starts must be in the jail.
        agent_commands: More agents: the command line that speaks ACP, by id.
        args: More command line arguments.

    Raises:
        ValueError: ``allow_hosts`` is given with ``network=False``.
        InvalidRequestError: A host of ``allow_hosts`` is invalid.
        ImportError: The extra ``server`` is not installed.
        SandboxAgentError: This is not Linux, bubblewrap is not installed, a folder does not exist, or no
            control group can be created for ``limits``.
    """
    return JailProvider(**options)
