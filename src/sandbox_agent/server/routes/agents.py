"""``/v1/agents``: the agents that this server can start."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import InvalidRequestError, UnsupportedAgentError
from sandbox_agent.server.agents.agent_options import models_of, modes_of
from sandbox_agent.server.http.operations import Answer, Operation, Parameter, read_flag, text_schema
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.api import AgentInfo, AgentListResponse
from sandbox_agent.wire.sessions import AgentModelsResponse, AgentModesResponse


async def list_agents(request: Request) -> Response:
    """List the agents of the catalogue and those that are installed on this machine."""
    config, no_cache = read_flag(request, "config"), read_flag(request, "no_cache")
    agents = await state_of(request).agents.list(config=config, no_cache=no_cache)
    return json_response(AgentListResponse(agents=agents))


async def get_agent(request: Request) -> Response:
    """Return one agent."""
    config, no_cache = read_flag(request, "config"), read_flag(request, "no_cache")
    return json_response(await _agent_info(request, config=config, no_cache=no_cache))


async def get_modes(request: Request) -> Response:
    """Return the modes of an agent."""
    info = await _agent_info(request, config=True)
    return json_response(modes_of(info.config_options or []))


async def get_models(request: Request) -> Response:
    """Return the models of an agent."""
    info = await _agent_info(request, config=True)
    return json_response(models_of(info.config_options or []))


async def _agent_info(request: Request, *, config: bool, no_cache: bool = False) -> AgentInfo:
    agent: str = request.path_params["agent"]
    return await state_of(request).agents.get(agent, config=config, no_cache=no_cache)


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

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/agents",
        endpoint=list_agents,
        operation_id="get_v1_agents",
        summary="List agents",
        description="Lists the agents of the catalogue, and all others that are installed on this machine.",
        tag="agents",
        parameters=_QUERY,
        answers={200: Answer("The agents.", AgentListResponse)},
        errors=(InvalidRequestError,),
    ),
    Operation(
        method="GET",
        path="/v1/agents/{agent}",
        endpoint=get_agent,
        operation_id="get_v1_agent",
        summary="Get an agent",
        description="Returns whether the agent can be started here, and its options.",
        tag="agents",
        parameters=(_AGENT, *_QUERY),
        answers={200: Answer("The agent.", AgentInfo)},
        errors=(InvalidRequestError, UnsupportedAgentError),
    ),
    Operation(
        method="GET",
        path="/v1/agents/{agent}/modes",
        endpoint=get_modes,
        operation_id="get_agent_modes",
        summary="List an agent's modes",
        description="Lists the modes in the agent's config options.",
        tag="agents",
        parameters=(_AGENT,),
        answers={200: Answer("The modes.", AgentModesResponse)},
        errors=(InvalidRequestError, UnsupportedAgentError),
    ),
    Operation(
        method="GET",
        path="/v1/agents/{agent}/models",
        endpoint=get_models,
        operation_id="get_agent_models",
        summary="List an agent's models",
        description="Lists the models in the agent's config options; their variants are the thought levels.",
        tag="agents",
        parameters=(_AGENT,),
        answers={200: Answer("The models.", AgentModelsResponse)},
        errors=(InvalidRequestError, UnsupportedAgentError),
    ),
)
