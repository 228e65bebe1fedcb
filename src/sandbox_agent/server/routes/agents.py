"""``/v1/agents``: which agents exist here."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import InvalidRequestError, UnsupportedAgentError
from sandbox_agent.server.agents.agent_options import models_of, modes_of
from sandbox_agent.server.http.operations import Answer, Operation, Parameter, flag
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.api import AgentInfo, AgentListResponse
from sandbox_agent.wire.sessions import AgentModelsResponse, AgentModesResponse

__all__ = ["OPERATIONS"]


async def list_agents(request: Request) -> Response:
    """List the agents that the catalogue or the layout knows."""
    config, no_cache = flag(request, "config"), flag(request, "no_cache")
    agents = await state_of(request).agents.list(config=config, no_cache=no_cache)
    return json_response(AgentListResponse(agents=agents))


async def get_agent(request: Request) -> Response:
    """Return one agent."""
    config, no_cache = flag(request, "config"), flag(request, "no_cache")
    agent: str = request.path_params["agent"]
    return json_response(await state_of(request).agents.get(agent, config=config, no_cache=no_cache))


async def get_modes(request: Request) -> Response:
    """Return the modes of an agent."""
    agent: str = request.path_params["agent"]
    info = await state_of(request).agents.get(agent, config=True, no_cache=False)
    return json_response(modes_of(info.config_options or []))


async def get_models(request: Request) -> Response:
    """Return the models of an agent."""
    agent: str = request.path_params["agent"]
    info = await state_of(request).agents.get(agent, config=True, no_cache=False)
    return json_response(models_of(info.config_options or []))


_AGENT = Parameter("agent", "path", "The agent's id.")
_BOOLEAN = {"type": "boolean"}
_QUERY = (
    Parameter("config", "query", "Add configOptions, asked from the agent where it is installed.", _BOOLEAN),
    Parameter("no_cache", "query", "Ask the agent again.", _BOOLEAN),
)

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/agents",
        endpoint=list_agents,
        operation_id="get_v1_agents",
        summary="List agents",
        description="Every agent of the catalogue, and those whose launcher lies in the layout.",
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
        summary="One agent",
        description="Whether it can be started here, and with which options.",
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
        summary="An agent's modes",
        description="As its config options say: asked from the agent where it is installed.",
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
        summary="An agent's models",
        description="As its config options say, its thought levels as variants.",
        tag="agents",
        parameters=(_AGENT,),
        answers={200: Answer("The models.", AgentModelsResponse)},
        errors=(InvalidRequestError, UnsupportedAgentError),
    ),
)
