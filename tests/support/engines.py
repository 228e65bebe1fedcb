"""Docker and Podman under test: started from Debian's packages, with an image made by debootstrap.

``python -m tests.support.engines`` makes the base image, before the tests run. It is kept in the cache folder
of the tests, outside of the checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from sandbox_agent import DockerProvider, PodmanProvider
from sandbox_agent.providers.engine.api import EngineApi
from sandbox_agent.providers.engine.build import build_image
from sandbox_agent.providers.engine.endpoints import EngineName
from tests.support.npm import cache_folder

__all__ = ["IMAGE", "Engine", "docker_engine", "engine", "podman_engine"]

IMAGE: Final = "sandbox-agent-test:latest"
BASE: Final = "sandbox-agent-test-base:latest"
_TOOLS: Final[dict[EngineName, tuple[str, ...]]] = {
    "docker": ("dockerd", "docker-proxy", "runc", "ip", "debootstrap"),
    "podman": ("podman", "runc", "conmon", "iptables", "debootstrap"),
}
_PACKAGES: Final = "python3,python3-venv,ca-certificates"
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 20.0
_CERTIFICATES: Final = "etc/ssl/certs/ca-certificates.crt"
# crun cannot run here, and the limits of the host may be below podman's defaults.
_PODMAN_CONFIG: Final = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


@dataclass(frozen=True)
class Engine:
    """A running engine, with the image under test.

    Attributes:
        name: which engine.
        socket: the path of its socket.
    """

    name: EngineName
    socket: Path

    @property
    def host(self) -> str:
        """Its URL."""
        return f"unix://{self.socket}"

    @property
    def api(self) -> EngineApi:
        """A client."""
        return EngineApi(self.name, self.host)

    def provider(self, **options: Any) -> DockerProvider | PodmanProvider:
        """Return a provider that uses this engine."""
        kind = DockerProvider if self.name == "docker" else PodmanProvider
        return kind(options.pop("image", IMAGE), host=self.host, **options)

    async def containers(self) -> list[str]:
        """Return the names of all sandboxes."""
        return [item["Names"][0].lstrip("/") for item in await self.api.list_containers("sandbox-agent=1")]


def base_image() -> Path:
    """Return a root file system with Python and what this package depends on, as a tar archive."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    needed: list[str] = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    key = hashlib.sha256("\n".join([_PACKAGES, *needed]).encode()).hexdigest()[:12]
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"engine-base-{key}.tar"
    with (folder / "engine-base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            _make_base(archive, needed)
    return archive


def _make_base(archive: Path, needed: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="engine-base-", dir=archive.parent) as temporary:
        root = Path(temporary, "root")
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        # pip runs outside with the interpreter of inside: names and certificates are this machine's.
        for name in ("etc/resolv.conf", _CERTIFICATES):
            if Path("/", name).exists():
                shutil.copy(Path("/", name), root / name)
        pip = f"/opt/sandbox-agent/bin/pip install --quiet --cert /{_CERTIFICATES}"
        script = f'python3 -m venv /opt/sandbox-agent && {pip} "$@" && rm -rf /var/cache/apt /root/.cache'
        subprocess.run(
            ["chroot", str(root), "sh", "-c", script, "sh", *needed],
            check=True,
            env={
                **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
                **{name: os.environ[name] for name in ("PIP_INDEX_URL",) if name in os.environ},
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            },
        )
        made = Path(temporary, archive.name)
        subprocess.run(["tar", "-C", str(root), "-cf", str(made), "."], check=True)
        made.rename(archive)


@contextlib.contextmanager
def _docker(folder: Path) -> Generator[Path]:
    bridge = f"sa{os.getpid():x}"
    path = folder / "engine.sock"
    command = [
        *("dockerd", "-H", f"unix://{path}", "--data-root", str(folder / "data")),
        *("--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid"), f"--bridge={bridge}"),
        *(
            "--iptables=false",
            "--ip-forward=false",
            "--ip-masq=false",
            "--default-ulimit",
            "nofile=1024:1024",
        ),
    ]
    subnet = f"10.{200 + os.getpid() // 256 % 50}.{os.getpid() % 256}.1/24"
    subprocess.run(["ip", "link", "add", "name", bridge, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", subnet, "dev", bridge], check=True)
        subprocess.run(["ip", "link", "set", bridge, "up"], check=True)
        with _running(command, folder, path, {}, _STOP_SECONDS):
            yield path
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=False)


@contextlib.contextmanager
def _podman(folder: Path) -> Generator[Path]:
    path = folder / "engine.sock"
    config = folder / "containers.conf"
    config.write_text(_PODMAN_CONFIG)
    env = {"CONTAINERS_CONF": str(config)}
    podman = ["podman", "--root", str(folder / "data"), "--runroot", str(folder / "run")]
    try:
        with _running(
            [*podman, "system", "service", "--time=0", f"unix://{path}"], folder, path, env, stop=1.0
        ):
            yield path
    finally:
        remove = [*podman, "rm", "--all", "--force", "--time=0"]
        subprocess.run(remove, check=False, env={**os.environ, **env}, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _running(
    command: Sequence[str], folder: Path, path: Path, env: dict[str, str], stop: float
) -> Generator[None]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **env}, cwd=folder, start_new_session=True
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _responds(path):
                if process.poll() is not None or time.monotonic() > deadline:
                    output = (folder / "log").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{command[0]} did not start: {output}")
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(stop)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def _responds(path: Path) -> bool:
    with contextlib.closing(_UnixConnection(path)) as connection:
        try:
            connection.request("GET", "/version")
            return connection.getresponse().status == 200
        except OSError:
            return False


def _import_base(path: Path, archive: Path) -> None:
    name, _, tag = BASE.partition(":")
    with contextlib.closing(_UnixConnection(path)) as connection, archive.open("rb") as content:
        connection.timeout = 120
        headers = {"Content-Type": "application/x-tar", "Content-Length": str(archive.stat().st_size)}
        query = f"/images/create?fromSrc=-&repo={name}&tag={tag}"
        connection.request("POST", query, body=content, headers=headers)
        assert connection.sock is not None
        connection.sock.settimeout(120)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200 or b'"error"' in said:
            raise RuntimeError(f"the base image could not be imported: {said[-500:]!r}")


def _missing(name: EngineName) -> str | None:
    """Return why an engine cannot run here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "it is started as root, on Linux"
    missing = [tool for tool in _TOOLS[name] if shutil.which(tool) is None]
    return f"not on PATH: {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def running_engine(name: EngineName) -> Generator[Engine]:
    """Run an engine that has the image under test."""
    archive = base_image()
    folder = Path(tempfile.mkdtemp(prefix=f"sa-{name}-"))  # its path is short enough for a socket
    start = _docker if name == "docker" else _podman
    try:
        with start(folder) as path:
            _import_base(path, archive)
            found = Engine(name, path)
            anyio.run(_build, found)
            yield found
    finally:
        _delete(folder)


async def _build(found: Engine) -> None:
    await build_image(found.api, tag=IMAGE, base=BASE, network="host")


def _delete(folder: Path) -> None:
    """Delete an engine's folder, with what it left mounted."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        mounted = line.split()[4]
        if mounted.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mounted], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _fixture(name: EngineName) -> Iterator[Engine]:
    if reason := _missing(name):
        pytest.skip(f"{name.upper()} NOT TESTED: {reason}")
    with running_engine(name) as found:
        yield found


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """Docker, which each worker of the tests that needs it starts once."""
    yield from _fixture("docker")


@pytest.fixture(scope="session")
def podman_engine() -> Iterator[Engine]:
    """Podman, which each worker of the tests that needs it starts once."""
    yield from _fixture("podman")


# One worker has all tests of an engine.
BOTH: Final = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("docker", "podman")]


@pytest.fixture(params=BOTH)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine. A test that leaves a sandbox fails."""
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    yield found
    assert anyio.run(_remove_all, found) == []


async def _remove_all(found: Engine) -> list[str]:
    left = await found.containers()
    for name in left:
        await found.api.remove(name)
    return left


if __name__ == "__main__":
    for missing in filter(None, map(_missing, _TOOLS)):
        print(f"the engines' base image is not made: {missing}", file=sys.stderr)
        break
    else:
        base_image()
