"""``/v1/agents``: the agents that this server can start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import ConflictError, InstallFailedError, StreamError, UnsupportedAgentError
from sandbox_agent.server.agents.installations import Listener
from sandbox_agent.server.agents.registry import models_of, modes_of
from sandbox_agent.server.http.install_stream import InstallStream
from sandbox_agent.server.http.operations import (
    Answer,
    Operation,
    Parameter,
    get_header,
    read_flag,
    read_json,
    text_schema,
)
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.server.streams.viewers import EVENT_STREAM
from sandbox_agent.wire.api import (
    AgentInfo,
    AgentInstallRequest,
    AgentInstallResponse,
    AgentListResponse,
)
from sandbox_agent.wire.sessions import AgentModelsResponse, AgentModesResponse

if TYPE_CHECKING:
    from sandbox_agent.agents.install.installer import Installed

_AGENT = Parameter("agent", "path", "The agent's id.", text_schema(least=1))
_BOOLEAN = {"type": "boolean"}
_QUERY = (
    Parameter(
        "config",
        "query",
        "Add configOptions. They come from the agent if it is installed, else from the catalogue.",
        _BOOLEAN,
    ),
    Parameter("no_cache", "query", "Ask the agent again instead of using its last answer.", _BOOLEAN),
)


@Operation(
    "GET",
    "/v1/agents",
    tag="agents",
    parameters=_QUERY,
    answers={200: Answer("The agents.", AgentListResponse)},
)
async def get_v1_agents(request: Request) -> Response:
    """List agents.

    Lists the agents of the catalogue, and all others that are installed on this machine.
    """
    config, no_cache = read_flag(request, "config"), read_flag(request, "no_cache")
    agents = await state_of(request).agents.list(config=config, no_cache=no_cache)
    return json_response(AgentListResponse(agents=agents))


@Operation(
    "GET",
    "/v1/agents/{agent}",
    tag="agents",
    parameters=(_AGENT, *_QUERY),
    answers={200: Answer("The agent.", AgentInfo)},
    errors=(UnsupportedAgentError,),
)
async def get_v1_agent(request: Request) -> Response:
    """Get an agent.

    Returns whether the agent can be started here, and its options.
    """
    config, no_cache = read_flag(request, "config"), read_flag(request, "no_cache")
    return json_response(await _agent_info(request, config=config, no_cache=no_cache))


@Operation(
    "GET",
    "/v1/agents/{agent}/modes",
    tag="agents",
    parameters=(_AGENT,),
    answers={200: Answer("The modes.", AgentModesResponse)},
    errors=(UnsupportedAgentError,),
)
async def get_agent_modes(request: Request) -> Response:
    """List an agent's modes.

    Lists the modes in the agent's config options.
    """
    info = await _agent_info(request, config=True)
    return json_response(modes_of(info.config_options or []))


@Operation(
    "GET",
    "/v1/agents/{agent}/models",
    tag="agents",
    parameters=(_AGENT,),
    answers={200: Answer("The models.", AgentModelsResponse)},
    errors=(UnsupportedAgentError,),
)
async def get_agent_models(request: Request) -> Response:
    """List an agent's models.

    Lists the models in the agent's config options; their variants are the thought levels.
    """
    info = await _agent_info(request, config=True)
    return json_response(models_of(info.config_options or []))


@Operation(
    "POST",
    "/v1/agents/{agent}/install",
    tag="agents",
    parameters=(_AGENT,),
    request_body=AgentInstallRequest,
    answers={
        200: Answer(
            "The agent is installed, or the stream of its installation.",
            AgentInstallResponse,
            ("application/json", EVENT_STREAM),
        )
    },
    errors=(UnsupportedAgentError, ConflictError, InstallFailedError, StreamError),
)
async def post_v1_agent_install(request: Request) -> Response:
    """Install an agent.

    Installs an agent of the catalogue from npm or PyPI, in the catalogue's versions or in others, and starts
    it once. An agent that is installed is left as it is, unless `reinstall` is true or a version is given
    that is not the installed one. If the client disconnects, the installation continues.

    With `Accept: text/event-stream`, the answer is a stream. A `progress` event has the `phase`
    (`waiting`, `installing`, `starting` or `installed`), and the packages that were downloaded: `done` of
    `total`. A `log` event has a `line` of npm's or pip's output. The last event is `done`, with an
    AgentInstallResponse, or `error`, with a problem document.
    """
    from sandbox_agent.agents.install.installer import Versions, check_installable, response_of

    state = state_of(request)
    agent: str = request.path_params["agent"]
    body = await read_json(request, AgentInstallRequest, state.config.max_body_bytes)
    versions = None
    if body.agent_version is not None or body.agent_process_version is not None:
        versions = Versions(acp=body.agent_process_version, native=body.agent_version)
    check_installable(agent, versions)

    async def install(listener: Listener | None = None) -> Installed:
        result = await state.installations.install(
            agent, versions=versions, reinstall=bool(body.reinstall), listener=listener
        )
        state.agents.forget(agent)
        return result

    if EVENT_STREAM in (get_header(request, b"accept") or ""):
        return InstallStream(install)
    return json_response(response_of(await install()))


async def _agent_info(request: Request, *, config: bool, no_cache: bool = False) -> AgentInfo:
    agent: str = request.path_params["agent"]
    return await state_of(request).agents.get(agent, config=config, no_cache=no_cache)


OPERATIONS = (
    get_v1_agents,
    get_v1_agent,
    get_agent_modes,
    get_agent_models,
    post_v1_agent_install,
)
