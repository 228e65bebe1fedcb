"""The providers ``docker()`` and ``podman()``."""

from __future__ import annotations

from typing import ClassVar, Unpack

from sandbox_agent.keywords import keywords
from sandbox_agent.providers.engine.container import EngineOptions
from sandbox_agent.providers.engine.endpoints import EngineName
from sandbox_agent.providers.engine.provider import EngineProvider


class DockerProvider(EngineProvider):
    """Runs sandboxes in Docker's containers. Created by ``docker``."""

    name: str = "docker"
    _engine: ClassVar[EngineName] = "docker"


class PodmanProvider(EngineProvider):
    """Runs sandboxes in Podman's containers. Created by ``podman``."""

    name: str = "podman"
    _engine: ClassVar[EngineName] = "podman"


@keywords(EngineOptions)
def docker(image: str | None = None, **options: Unpack[EngineOptions]) -> DockerProvider:
    """Return a provider that runs each sandbox in a Docker container. Its ids are ``docker/<container>``.

    The container has no capabilities and cannot gain privileges, its processes are not root's, and its port
    is open on 127.0.0.1 only. It lasts until it is destroyed or ``max_lifetime`` ends it.

    The engine is found as the docker command finds it: DOCKER_HOST (with DOCKER_TLS_VERIFY and
    DOCKER_CERT_PATH), its context, and the usual sockets.

    Args:
        image: The image, or None for the one that ``sandbox-agent image build`` makes. In another one, such
            as "python:3.12", the server is installed once, which needs Python 3.11 or uv there.
        env: Variables for the server and its agents. The container's configuration does not show them.
        mounts: Files and folders of this machine, which the engine has to be on.
        workspace: A folder of this machine for ``/workspace``, which agents may write to. None for an empty
            folder in the container.
        network: "bridge", the name of another network, or "none": then the server is reached over a Unix
            socket, which needs an engine on this Linux machine.
        allow_hosts: The only hosts that the sandbox reaches, such as ["api.anthropic.com", "*.npmjs.org"]. It
            has no network of its own then, but a proxy beside it, in another container, which is in
            ``network``. Needs an engine on this Linux machine. None allows all.
        memory: The memory of all processes together, such as "512m" or "2g". There is no swap beyond it.
        cpus: Processors, which may be a fraction.
        pids: How many processes and threads there may be.
        user: User and group as numbers, such as "1000:1000". None for the owner of the workspace, or 1000.
        read_only: Whether only ``/workspace``, ``/home/agent`` and ``/tmp`` can be written to.
        runtime: Another runtime of the engine, such as "runsc" or "kata".
        gpus: "all", how many, or the ids of GPUs.
        ports: More ports of the container to publish on 127.0.0.1; see ``get_address`` of the provider.
        pull: Whether to pull the image if it is missing, always or never.
        pause: What ``pause_sandbox`` does: freeze the container with its memory, or stop it.
        max_lifetime: Seconds after which a container ends in which no turn runs, no permission is waited for
            and to which no client is connected. Its files are kept until as many seconds later; then the
            next ``create`` removes it. None keeps it forever.
        agent_commands: More agents: the command line in the container that speaks ACP, by id.
        args: More command line arguments of the server.
        create: Changes of the engine's create call: a mapping that is merged into its body, or a function
            that gets the body and changes it or returns another one.
        host: The engine's URL (``unix:///path``, ``tcp://host:port``), or None to find it.

    Raises:
        TypeError: There is no such argument.
        ValueError: An argument is invalid.
        InvalidRequestError: A host of ``allow_hosts`` is invalid.
        SandboxAgentError: A folder does not exist.
    """
    return DockerProvider(image, **options)


@keywords(EngineOptions)
def podman(image: str | None = None, **options: Unpack[EngineOptions]) -> PodmanProvider:
    """Return a provider that runs each sandbox in a Podman container. Its ids are ``podman/<container>``.

    The arguments are those of ``docker``. The engine is found at CONTAINER_HOST, or at the sockets of
    Podman's service for this user and for the system.

    Raises:
        ValueError: An argument is invalid.
        InvalidRequestError: A host of ``allow_hosts`` is invalid.
        SandboxAgentError: A folder does not exist.
    """
    return PodmanProvider(image, **options)
