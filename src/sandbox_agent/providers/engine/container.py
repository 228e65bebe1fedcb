"""What a sandbox's container is made of: the body of the engine's create call, its labels and its secret."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import random
import re
import secrets
import shlex
import socket
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from sandbox_agent.egress.allow_list import AllowList
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.mounts import Mount

VERSION: str = importlib.metadata.version("sandbox-agent-py")
DEFAULT_IMAGE: str = f"sandbox-agent-py:{VERSION.replace('+', '-')}"
WORKSPACE = "/workspace"
HOME = "/home/agent"
PORT = 2468
USER = "1000:1000"

LABEL = "sandbox-agent"
VERSION_LABEL = "sandbox-agent.version"
SECRET_LABEL = "sandbox-agent.secret-sha256"  # noqa: S105 - its name
SOCKET_LABEL = "sandbox-agent.socket-folder"
PROXY_LABEL = "sandbox-agent.proxy-folder"
LIFETIME_LABEL = "sandbox-agent.max-lifetime"

# Only root can read it, so no process of the container, and it is a volume: snapshots do not have it.
SECRET_FOLDER = "/run/sandbox-agent"  # noqa: S105 - a path
SECRET_FILE = "secret"  # noqa: S105 - a path
SOCKET_FOLDER = "/run/sandbox-agent-socket"
SOCKET = "server.sock"
# The folder of the proxy for the allowed hosts, and its socket.
PROXY_FOLDER = "/run/sandbox-agent-proxy"
PROXY_SOCKET = "proxy.sock"
# A comment, as the text is evaluated with it.
_END = "# sandbox-agent-end"
# The token and the variables come over standard input, so neither the container's configuration nor a file
# that agents can read has them. The provider waits for the output that says that they were read. The
# server's token is in a pipe or a deleted file, which it closes.
_SCRIPT = f"""\
text=$(timeout 20 sed '/^{_END}$/q') || exit 78
eval "$text"
text=
[ -n "$token" ] || {{ echo 'start this container with the provider that made it' >&2; exit 78; }}
echo 'the sandbox starts'
exec sandbox-agent server --token-file /dev/fd/3 "$@" 3<<END </dev/null
$token
END
"""
_SIZE = re.compile(r"(\d{1,15})([kmgt]?)b?", re.IGNORECASE | re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER_IDS = re.compile(r"(\d{1,10})(?::(\d{1,10}))?")

Native = Mapping[str, Any] | Callable[[dict[str, Any]], Mapping[str, Any] | None]
Pull = Literal["missing", "always", "never"]
Pause = Literal["pause", "stop"]


class EngineOptions(TypedDict, total=False):
    """The options of ``docker()`` and ``podman()``, which explain them."""

    env: Mapping[str, str] | None
    mounts: Sequence[Mount]
    workspace: str | os.PathLike[str] | None
    network: str
    allow_hosts: Sequence[str] | None
    memory: str
    cpus: float
    pids: int
    user: str | None
    read_only: bool
    runtime: str | None
    gpus: int | str | Sequence[str] | None
    ports: Sequence[int]
    pull: Pull
    pause: Pause
    max_lifetime: float | None
    agent_commands: Mapping[str, str | Sequence[str]] | None
    args: Sequence[str]
    create: Native | None
    host: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerOptions:
    """The checked options that make a container."""

    image: str
    env: Mapping[str, str]
    mounts: Sequence[Mount]
    workspace: Path | None
    network: str
    allow_hosts: Sequence[str] | None
    memory: str
    cpus: float
    pids: int
    user: str | None
    read_only: bool
    runtime: str | None
    gpus: int | str | Sequence[str] | None
    ports: Sequence[int]
    max_lifetime: float | None
    agent_commands: Mapping[str, str | Sequence[str]]
    args: Sequence[str]
    create: Native | None

    @property
    def has_network(self) -> bool:
        """Whether the server is reached over a port, and not over a Unix socket."""
        return self.network != "none" and self.allow_hosts is None

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid.
            InvalidRequestError: A host is invalid.
        """
        _memory_bytes(self.memory)
        if self.allow_hosts is not None:
            if self.network == "none":
                raise ValueError(
                    "network='none' and allow_hosts exclude each other: without a network there is no host "
                    "to allow, so leave one of them out"
                )
            if self.ports:
                raise ValueError("ports and allow_hosts exclude each other: leave one of them out")
            AllowList(self.allow_hosts)
        if self.network == "host" or self.network.startswith("container:"):
            raise ValueError(
                f"network={self.network!r} would share a network with the sandbox: use 'bridge', 'none' or "
                "the name of a network"
            )
        if self.user is not None and _USER_IDS.fullmatch(self.user) is None:
            raise ValueError(f"user must be numbers such as '1000:1000', not {self.user!r}")
        if self.cpus <= 0 or self.pids <= 0:
            raise ValueError("cpus and pids must be greater than 0")
        if self.max_lifetime is not None and self.max_lifetime <= 0:
            raise ValueError("max_lifetime must be greater than 0, or None for no limit")
        for name, value in self.env.items():
            if _NAME.fullmatch(name) is None or "\0" in value or _END in value.split("\n"):
                raise ValueError(
                    f"the variable {name!r} cannot be set in a container: its name or value is invalid"
                )


class Secret:
    """The token and the variables of a sandbox, as the text that its start script evaluates."""

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def make(cls, env: Mapping[str, str]) -> Secret:
        """Return a secret with a new token."""
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
        return cls(f"token={secrets.token_urlsafe(24)}\n{exports}{_END}")

    @property
    def token(self) -> str:
        """The server's token."""
        return self.text.partition("\n")[0].removeprefix("token=")

    @property
    def digest(self) -> str:
        """What proves a text to be this secret. Nobody can guess a text that has a random token."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def _memory_bytes(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"memory must be a size such as '512m' or '2g', not {text!r}")
    return int(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " ")


def find_user(options: ContainerOptions) -> str:
    """Return the user and the group of the container's processes.

    Raises:
        SandboxAgentError: No user but root could write to the workspace, and ``user`` is not given.
    """
    if options.user is not None:
        uid, gid = _ids(options.user)
        return f"{uid}:{gid}"
    if sys.platform != "linux":  # the engine's virtual machine maps the owner
        return USER
    if options.workspace is not None:
        status = options.workspace.stat()
        if status.st_uid != 0:
            return f"{status.st_uid}:{status.st_gid}"
        if status.st_mode & 0o002:
            return USER
        raise SandboxAgentError(
            f"the workspace '{options.workspace}' belongs to root, and processes of the container do not run "
            f"as root: run chown -R {USER} on it, or pass user='0:0' to run them as root"
        )
    if not options.has_network and os.geteuid() != 0:
        return f"{os.geteuid()}:{os.getegid()}"  # only the owner may open the server's socket
    return USER


def _ids(user: str) -> tuple[int, int]:
    uid, _, gid = user.partition(":")
    return int(uid), int(gid or uid)


def socket_folder(name: str) -> Path:
    """Return the folder of this machine in which a sandbox without a network has its socket."""
    return Path(tempfile.gettempdir(), name)


def proxy_folder(name: str) -> Path:
    """Return the folder of this machine in which the proxy of a sandbox has its socket."""
    return Path(tempfile.gettempdir(), f"{name}-proxy")


def make_socket_folder(folder: Path, user: str) -> None:
    """Make that folder for the container's user, unless it exists.

    Raises:
        SandboxAgentError: It exists and belongs to another user.
    """
    uid, gid = _ids(user)
    try:
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, uid, gid)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (uid, os.geteuid()):
            raise SandboxAgentError(
                f"'{folder}' is not the folder of the sandbox's socket: delete it, or the sandbox"
            ) from None


def free_port() -> int:
    """Return a port of this machine on which nothing listens now.

    It is not one of those that the kernel gives to outgoing connections, so that it is most likely free when
    a stopped container starts again.
    """
    while True:
        port = random.randrange(10_240, 32_000)  # noqa: S311 - not a secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def hardened(memory: int, pids: int) -> dict[str, Any]:
    """Return the part of a create call that bounds what a container can do and use.

    Args:
        memory: in bytes, without swap beyond it.
        pids: how many processes and threads there may be.
    """
    return {
        "AutoRemove": False,
        "Init": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": pids,
        "Memory": memory,
        "MemorySwap": memory,
    }


def container_body(options: ContainerOptions, name: str, user: str, secret: Secret) -> dict[str, Any]:
    """Return the body of the engine's create call."""
    folder = None if options.has_network else socket_folder(name)
    published = [PORT, *options.ports] if options.has_network else []
    host: dict[str, Any] = {
        **hardened(_memory_bytes(options.memory), options.pids),
        "NanoCpus": int(options.cpus * 1e9),
        "NetworkMode": options.network if options.has_network else "none",
        "PortBindings": {
            f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(free_port())}] for port in published
        },
        "Mounts": [*_mounts(options, name)],
        "ReadonlyRootfs": options.read_only,
        "RestartPolicy": {"Name": "no"},
    }
    if options.read_only:
        host["Tmpfs"] = {"/tmp": "rw,nosuid,nodev,mode=1777"}  # noqa: S108 - the container's own
    if options.runtime is not None:
        host["Runtime"] = options.runtime
    if options.gpus is not None:
        host["DeviceRequests"] = [_device_request(options.gpus)]
    volumes = [SECRET_FOLDER]
    if options.read_only:
        volumes += [HOME, *([] if options.workspace else [WORKSPACE])]
    body: dict[str, Any] = {
        "Image": options.image,
        "User": user,
        "Hostname": "sandbox",
        "WorkingDir": WORKSPACE,
        "Env": [f"HOME={HOME}", "USER=agent", "LOGNAME=agent"],
        "Entrypoint": ["/bin/sh", "-c", _SCRIPT, "sandbox-agent"],
        "Cmd": _arguments(options, folder),
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "Volumes": {path: {} for path in volumes},
        "ExposedPorts": {f"{port}/tcp": {} for port in published},
        # The client looks itself, and a check every few seconds would cost processor time.
        "Healthcheck": {"Test": ["NONE"]},
        # All of them, as an image that was made from a sandbox has its labels.
        "Labels": {
            LABEL: "1",
            VERSION_LABEL: VERSION,
            SECRET_LABEL: secret.digest,
            SOCKET_LABEL: "" if folder is None else str(folder),
            PROXY_LABEL: "" if options.allow_hosts is None else str(proxy_folder(name)),
            LIFETIME_LABEL: "" if options.max_lifetime is None else f"{options.max_lifetime:g}",
        },
        "HostConfig": host,
    }
    return _with_native(body, options.create)


def _arguments(options: ContainerOptions, folder: Path | None) -> list[str]:
    address = ["--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104 - in the container
    arguments = [*(address if folder is None else ["--uds", f"{SOCKET_FOLDER}/{SOCKET}"])]
    if options.allow_hosts is not None:
        arguments += ["--egress-proxy", f"unix:{PROXY_FOLDER}/{PROXY_SOCKET}"]
    if options.max_lifetime is not None:
        arguments += ["--exit-when-idle", f"{options.max_lifetime:g}"]
    for agent, words in options.agent_commands.items():
        line = words if isinstance(words, str) else shlex.join(words)
        arguments.append(f"--agent-command={agent}={line}")
    return [*arguments, *options.args]


def _mounts(options: ContainerOptions, name: str) -> Iterator[dict[str, Any]]:
    mounts = list(options.mounts)
    if options.workspace is not None:
        mounts.append(Mount(options.workspace, WORKSPACE, writable=True))
    if not options.has_network:
        mounts.append(Mount(socket_folder(name), SOCKET_FOLDER, writable=True))
    if options.allow_hosts is not None:
        mounts.append(Mount(proxy_folder(name), PROXY_FOLDER))
    for mount in mounts:
        yield {
            "Type": "bind",
            "Source": str(mount.source),
            "Target": mount.target,
            "ReadOnly": not mount.writable,
        }


def _device_request(gpus: int | str | Sequence[str]) -> dict[str, Any]:
    request: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]]}
    if gpus == "all":
        return {**request, "Count": -1}
    if isinstance(gpus, int):
        return {**request, "Count": gpus}
    return {**request, "DeviceIDs": [gpus] if isinstance(gpus, str) else list(gpus)}


def _with_native(body: dict[str, Any], native: Native | None) -> dict[str, Any]:
    if callable(native):
        changed = native(body)
        return body if changed is None else dict(changed)
    return body if native is None else _merged(body, native)


def _merged(body: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(body)
    for name, value in changes.items():
        before = merged.get(name)
        if isinstance(before, dict) and isinstance(value, Mapping):
            value = _merged(cast(dict[str, Any], before), cast(Mapping[str, Any], value))
        merged[name] = value
    return merged


def secret_archive(text: str, user: str = "0:0") -> bytes:
    """Return a tar archive for the secret's folder. Only the user can read the text."""
    return _archive([(SECRET_FILE, text.encode(), 0o400, *_ids(user))])


def folders_archive(user: str, *, workspace: bool, mode: int = 0o755) -> bytes:
    """Return a tar archive for the root of an image that may lack these folders."""
    uid, gid = _ids(user)
    names = [HOME, *([WORKSPACE] if workspace else [])]
    return _archive([(name.strip("/"), None, mode, uid, gid) for name in names])


def _archive(entries: Sequence[tuple[str, bytes | None, int, int, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content, mode, uid, gid in entries:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.uid, entry.gid = mode, uid, gid
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
