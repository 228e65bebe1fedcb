"""Installs the server into an image that lacks it, and keeps the result as an image of the engine.

This happens once per image and version, in a container of its own with the limits of a sandbox. It has
nothing of the sandbox: no variables, workspace, mounts or token. The start script does it, as at a service.
"""

from __future__ import annotations

import asyncio
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.base import finish
from sandbox_agent.providers.engine.api import EngineApi
from sandbox_agent.providers.engine.build import archive_files, pip_settings, proxy_variables
from sandbox_agent.providers.engine.container import (
    PORT,
    USER,
    VERSION,
    ContainerOptions,
    folders_archive,
    hardened,
)
from sandbox_agent.providers.engine.images import split_tag
from sandbox_agent.providers.own_wheel import run_with_wheel
from sandbox_agent.providers.start_script import StartScript

# The name of the image from which it was made, in the labels of the container.
INSTALL_LABEL = "sandbox-agent.install-in"
_FOLDER = "/opt/sandbox-agent-py"
# A volume, so that the image does not have it: package indexes and proxies with their passwords.
_SETTINGS = "/run/sandbox-agent-install"
_MEMORY = 2 * 1024**3
_PIDS = 512
# Seconds. The container ends by itself if its program was killed.
_LIFETIME = 1800
_COMMIT_TIMEOUT = 600.0
_POLL_INTERVAL = 0.2
# A container that another program made and has not started by now is a leftover.
_START_TIME = timedelta(seconds=60)
# The server's user may read it all, and nothing of the installation's own files is left.
_COMMAND = f"""\
set -a; . {_SETTINGS}/env.sh; set +a
sh {_SETTINGS}/start.sh install || exit
rm -f {_FOLDER}/*.log {_FOLDER}/*.whl {_FOLDER}/lock
chmod -R a+rX {_FOLDER} && mkdir -p /usr/local/bin &&
ln -sf {_FOLDER}/venv/bin/sandbox-agent /usr/local/bin/sandbox-agent
"""


def installed_image(image_id: str) -> str:
    """Return the name of the image that has the server in addition to what this one has."""
    version = VERSION.replace("+", "-")
    return f"sandbox-agent-installed:{version}-{image_id.removeprefix('sha256:')[:16]}"


async def install_server(api: EngineApi, options: ContainerOptions, image_id: str) -> str:
    """Make an image with the server from one without it, and return its name.

    Programs that do this at the same time wait for the first of them.

    Args:
        api: The engine.
        options: Those of the sandbox, of which image, processors, runtime and network count.
        image_id: The id of the image.

    Raises:
        SandboxAgentError: The image has no Python, or a package index cannot be reached.
    """
    tag = installed_image(image_id)
    name = tag.replace(":", "-")
    while await api.find_image(tag) is None:
        try:
            await finish(_start(api, options, name))
        except SandboxAgentError as error:
            if error.status != 409 and "already in use" not in str(error):
                raise
            await _wait_removed(api, name)
            continue
        try:
            await _install(api, options.image, name)
            repository, version = split_tag(tag)
            params = {"container": name, "repo": repository, "tag": version}
            await api.request("POST", "/commit", params=params, body={}, timeout=_COMMIT_TIMEOUT)
        finally:
            await finish(api.remove(name))
    return tag


async def _start(api: EngineApi, options: ContainerOptions, name: str) -> None:
    await api.request("POST", "/containers/create", params={"name": name}, body=_body(options))
    try:
        files = {
            **pip_settings(_SETTINGS),
            "start.sh": StartScript(port=PORT, folder=_FOLDER).text().encode(),
        }
        files["env.sh"] = _variables(has_certificate="ca.pem" in files).encode()
        # For any user, as in our own image: a sandbox that is read-only has them from here.
        await api.put_files(name, "/", folders_archive(USER, workspace=True, mode=0o777))
        await api.put_files(name, _SETTINGS, archive_files(files))
        await api.request("POST", f"/containers/{name}/start")
    except BaseException:
        await api.remove(name)
        raise


async def _install(api: EngineApi, image: str, name: str) -> None:
    async def run() -> tuple[int, str]:
        code, output = await api.execute(name, ["/bin/sh", "-c", _COMMAND])
        return code, output.decode(errors="replace")

    async def put(wheel: str, content: bytes) -> None:
        await api.put_files(name, _FOLDER, archive_files({wheel: content}))

    code, output = await run_with_wheel(run, put)
    if code:
        raise SandboxAgentError(
            f"the image '{image}' has no sandbox-agent server, and it could not be installed there (exit "
            f"code {code}): {output.strip() or 'without any output'}. Use an image with Python 3.11 or "
            "newer, or build one with 'sandbox-agent image build --engine "
            f"{api.engine} --base {image} --tag NAME'"
        )


async def _wait_removed(api: EngineApi, name: str) -> None:
    """Wait until another program has ended its installation, and remove what a killed one has left."""
    while (found := await api.inspect(name)) is not None:
        status, created = found["State"]["Status"], datetime.fromisoformat(found["Created"])
        is_old = datetime.now(UTC) - created > _START_TIME
        if status in ("exited", "dead") or (status == "created" and is_old):
            await api.remove(name)
        await asyncio.sleep(_POLL_INTERVAL)


def _variables(*, has_certificate: bool) -> str:
    variables = {
        **proxy_variables(),
        "PIP_CONFIG_FILE": f"{_SETTINGS}/pip.conf",
        "PIP_NO_CACHE_DIR": "1",
        # Where there is uv and no Python, uv installs one, which the server's user has to reach.
        "UV_NO_CACHE": "1",
        "UV_PYTHON_INSTALL_DIR": f"{_FOLDER}/python",
    }
    if has_certificate:
        variables["SSL_CERT_FILE"] = f"{_SETTINGS}/ca.pem"
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _body(options: ContainerOptions) -> dict[str, Any]:
    host: dict[str, Any] = {
        **hardened(_MEMORY, _PIDS),
        "AutoRemove": True,
        "NanoCpus": int(options.cpus * 1e9),
        "NetworkMode": "bridge" if options.network == "none" else options.network,
    }
    if options.runtime is not None:
        host["Runtime"] = options.runtime
    return {
        "Image": options.image,
        "User": "0:0",
        "WorkingDir": "/",
        "Entrypoint": ["/bin/sh", "-c", f"sleep {_LIFETIME}"],
        "Cmd": [],
        "Volumes": {_SETTINGS: {}},
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {INSTALL_LABEL: options.image},
        "HostConfig": host,
    }
