"""Builds the image of a sandbox through the engine's API."""

from __future__ import annotations

import asyncio
import configparser
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.engine.api import EngineApi
from sandbox_agent.providers.own_wheel import make_wheel

BASE = "python:3.12-slim-bookworm"
AGENTS_BASE = "node:22-bookworm-slim"
_DOCKERFILE = Path(__file__).with_name("Dockerfile")
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


async def build_image(
    api: EngineApi,
    *,
    tag: str,
    base: str | None = None,
    agents: Sequence[str] = (),
    network: str | None = None,
    on_output: Callable[[str], object] | None = None,
) -> None:
    """Build an image with this package, as it is installed here, and with agents.

    Package indexes, the CA file of pip, proxies and ``.npmrc`` are those of this machine. The image does not
    have them.

    Args:
        api: The engine.
        tag: The image's name.
        base: The image to build from, with apt or with what is needed: Python 3.11 with venv, and Node.js for
            agents. None for an official one of Python or Node.js.
        agents: The ids of the agents to install in it.
        network: The network of the build, such as "host", or None for the engine's default.
        on_output: Called with each piece of the build's output.

    Raises:
        SandboxAgentError: The build failed. The message ends with its last output.
    """
    arguments = {
        **proxy_variables(),
        "BASE": base or (AGENTS_BASE if agents else BASE),
        "AGENTS": ",".join(agents),
    }
    params = {"t": tag, "buildargs": json.dumps(arguments), "rm": "true", "forcerm": "true"}
    if network is not None:
        params["networkmode"] = network
    output = ""
    try:
        context = await asyncio.to_thread(_make_context)
        async for item in api.stream_lines("/build", params=params, content=context):
            text = str(item.get("stream", ""))
            output = (output + text)[-2000:]
            if on_output is not None:
                on_output(text)
    except SandboxAgentError as error:
        raise SandboxAgentError(f"the image '{tag}' could not be built: {error}: {output.strip()}") from error


def _make_context() -> bytes:
    """Return the build's context: a tar archive with the wheel and the settings of pip and npm."""
    name, wheel = make_wheel()
    npmrc = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    files = {
        "Dockerfile": _DOCKERFILE.read_bytes(),
        name: wheel,
        "npmrc": _read(npmrc) + _npm_registry(),
        "ca.pem": b"",
        **pip_settings("/build"),
    }
    return archive_files(files)


def archive_files(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def proxy_variables() -> dict[str, str]:
    """Return the variables of this machine that name its proxies."""
    return {name: os.environ[name] for name in _PROXIES if os.environ.get(name)}


def pip_settings(folder: str) -> dict[str, bytes]:
    """Return this machine's settings of pip: the files ``pip.conf`` and, with a CA file, ``ca.pem``.

    Args:
        folder: Where they are read.
    """
    options = _pip_options()
    certificate = os.environ.get("PIP_CERT") or options.pop("cert", "")
    options.pop("cert", None)
    files: dict[str, bytes] = {}
    if certificate and (content := _read(Path(certificate))):
        files["ca.pem"] = content
        options["cert"] = f"{folder}/ca.pem"
    lines = ["[global]\n", *(f"{key} = {value}\n" for key, value in options.items())]
    return {**files, "pip.conf": "".join(lines).encode()}


def _npm_registry() -> bytes:
    names = ("npm_config_registry", "NPM_CONFIG_REGISTRY")
    registry = next((os.environ[name] for name in names if os.environ.get(name)), None)
    return f"\nregistry={registry}\n".encode() if registry else b""


def _pip_options() -> dict[str, str]:
    """Return the options of pip that say where packages are. Indexes in files are this machine's."""
    found: dict[str, str] = {}
    for path in _pip_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(_read(path).decode())
        except (configparser.Error, UnicodeError):
            continue  # pip itself reports it
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {
                    key: value for key, value in parser.items(section) if key in (*_PIP_OPTIONS, "cert")
                }
    found |= _from_variables(os.environ)
    for key in ("index-url", "extra-index-url"):
        if key in found:
            found[key] = " ".join(url for url in found[key].split() if not url.startswith("file:"))
    return {key: value for key, value in found.items() if value}


def _pip_files() -> Iterator[Path]:
    yield Path("/etc/pip.conf")
    yield Path.home() / ".pip/pip.conf"
    yield Path.home() / ".config/pip/pip.conf"
    if named := os.environ.get("PIP_CONFIG_FILE"):
        yield Path(named)


def _from_variables(environment: Mapping[str, str]) -> dict[str, str]:
    names = {option: f"PIP_{option.replace('-', '_').upper()}" for option in _PIP_OPTIONS}
    return {option: environment[name] for option, name in names.items() if environment.get(name)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
