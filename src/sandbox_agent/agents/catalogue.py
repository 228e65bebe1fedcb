"""The agents that are known, as data.

Ids and capabilities of the first seven are those that the published 0.4.2 server lists; the command lines
are those under which the agents speak ACP on stdin and stdout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sandbox_agent.agents.fallback_options import fallback_options
from sandbox_agent.wire.api import AgentCapabilities

__all__ = ["CATALOGUE", "Agent", "CredentialFile"]


@dataclass(frozen=True)
class CredentialFile:
    """A file under the user's home that holds credentials.

    Attributes:
        path: relative to home.
        members: the file is JSON and counts only with one of these members set; empty: it counts as it is.
    """

    path: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Agent:
    """A known agent.

    Attributes:
        id: its id in the HTTP contract.
        title: its name, for people.
        adapters: command lines looked for on PATH, best first; each speaks ACP.
        native: the agent's own binary, or None where it has none.
        native_args: what makes the native binary speak ACP, or None where it needs an adapter.
        capabilities: what it can do.
        credential_env: environment variables, any of which holds credentials.
        credential_files: files, any of which holds credentials. With neither, the agent needs none.
    """

    id: str
    title: str
    capabilities: AgentCapabilities
    adapters: tuple[tuple[str, ...], ...] = ()
    native: str | None = None
    native_args: tuple[str, ...] | None = None
    credential_env: tuple[str, ...] = ()
    credential_files: tuple[CredentialFile, ...] = ()

    @property
    def config_options(self) -> list[dict[str, Any]]:
        """ACP's ``configOptions`` as far as they are known without asking the agent; a fresh copy."""
        return fallback_options(self.id)


_ANTHROPIC_ENV = ("ANTHROPIC_API_KEY", "CLAUDE_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN")
_OPENAI_ENV = ("OPENAI_API_KEY", "CODEX_API_KEY")
_GOOGLE_ENV = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
_ANTHROPIC_KEYS = ("primaryApiKey", "apiKey", "anthropicApiKey", "customApiKey")
_ANTHROPIC_FILES = (
    CredentialFile(".claude/.credentials.json", ("claudeAiOauth",)),
    CredentialFile(".claude-oauth-credentials.json", ("claudeAiOauth",)),
    CredentialFile(".claude.json.api", _ANTHROPIC_KEYS),
    CredentialFile(".claude.json", _ANTHROPIC_KEYS),
)
_OPENAI_FILES = (CredentialFile(".codex/auth.json", ("OPENAI_API_KEY", "tokens")),)

_AGENTS = (
    Agent(
        id="claude",
        title="Claude Code",
        adapters=(("claude-agent-acp",), ("claude-code-acp",)),
        native="claude",
        capabilities=AgentCapabilities(
            permissions=True,
            questions=True,
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            mcp_tools=True,
            streaming_deltas=True,
        ),
        credential_env=_ANTHROPIC_ENV,
        credential_files=_ANTHROPIC_FILES,
    ),
    Agent(
        id="codex",
        title="Codex",
        adapters=(("codex-acp",),),
        native="codex",
        capabilities=AgentCapabilities(
            plan_mode=True,
            permissions=True,
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            file_attachments=True,
            session_lifecycle=True,
            error_events=True,
            reasoning=True,
            status=True,
            command_execution=True,
            file_changes=True,
            mcp_tools=True,
            streaming_deltas=True,
            item_started=True,
        ),
        credential_env=_OPENAI_ENV,
        credential_files=_OPENAI_FILES,
    ),
    Agent(
        id="opencode",
        title="OpenCode",
        adapters=(("opencode", "acp"),),
        native="opencode",
        native_args=("acp",),
        capabilities=AgentCapabilities(
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            file_attachments=True,
            session_lifecycle=True,
            error_events=True,
            mcp_tools=True,
            streaming_deltas=True,
            item_started=True,
        ),
        credential_env=_ANTHROPIC_ENV + _OPENAI_ENV,
        credential_files=(
            CredentialFile(".local/share/opencode/auth.json"),
            *_ANTHROPIC_FILES,
            *_OPENAI_FILES,
        ),
    ),
    Agent(
        id="amp",
        title="Amp",
        adapters=(("amp-acp",),),
        native="amp",
        capabilities=AgentCapabilities(
            tool_calls=True, tool_results=True, text_messages=True, error_events=True, mcp_tools=True
        ),
        credential_env=("AMP_API_KEY", *_ANTHROPIC_ENV),
        credential_files=(
            CredentialFile(".local/share/amp/secrets.json"),
            CredentialFile(".amp/config.json"),
            *_ANTHROPIC_FILES,
        ),
    ),
    Agent(
        id="pi",
        title="Pi",
        adapters=(("pi-acp",),),
        native="pi",
        capabilities=AgentCapabilities(
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            session_lifecycle=True,
            error_events=True,
            streaming_deltas=True,
            item_started=True,
        ),
    ),
    Agent(
        id="cursor",
        title="Cursor",
        adapters=(("cursor-agent-acp",), ("cursor-agent", "acp")),
        native="cursor-agent",
        native_args=("acp",),
        capabilities=AgentCapabilities(
            plan_mode=True,
            permissions=True,
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            session_lifecycle=True,
            error_events=True,
            streaming_deltas=True,
            item_started=True,
        ),
    ),
    Agent(
        id="mock",
        title="Mock",
        capabilities=AgentCapabilities(
            plan_mode=True,
            permissions=True,
            questions=True,
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            file_attachments=True,
            session_lifecycle=True,
            error_events=True,
            reasoning=True,
            status=True,
            command_execution=True,
            file_changes=True,
            mcp_tools=True,
            streaming_deltas=True,
            item_started=True,
        ),
    ),
    Agent(
        id="gemini",
        title="Gemini CLI",
        adapters=(("gemini", "--acp"),),
        native="gemini",
        native_args=("--acp",),
        capabilities=AgentCapabilities(
            plan_mode=True,
            permissions=True,
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            file_attachments=True,
            session_lifecycle=True,
            error_events=True,
            reasoning=True,
            command_execution=True,
            file_changes=True,
            mcp_tools=True,
            streaming_deltas=True,
            item_started=True,
        ),
        credential_env=_GOOGLE_ENV,
        credential_files=(CredentialFile(".gemini/oauth_creds.json"),),
    ),
    Agent(
        id="qwen",
        title="Qwen Code",
        adapters=(("qwen", "--acp"),),
        native="qwen",
        native_args=("--acp",),
        capabilities=AgentCapabilities(
            plan_mode=True,
            permissions=True,
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            file_attachments=True,
            session_lifecycle=True,
            error_events=True,
            reasoning=True,
            command_execution=True,
            file_changes=True,
            mcp_tools=True,
            streaming_deltas=True,
            item_started=True,
        ),
        credential_env=("OPENAI_API_KEY", "DASHSCOPE_API_KEY"),
        credential_files=(CredentialFile(".qwen/oauth_creds.json"),),
    ),
    Agent(
        id="goose",
        title="Goose",
        adapters=(("goose", "acp"),),
        native="goose",
        native_args=("acp",),
        capabilities=AgentCapabilities(
            permissions=True,
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            file_attachments=True,
            session_lifecycle=True,
            error_events=True,
            reasoning=True,
            status=True,
            command_execution=True,
            file_changes=True,
            mcp_tools=True,
            streaming_deltas=True,
            item_started=True,
        ),
        credential_env=_ANTHROPIC_ENV[:1] + _OPENAI_ENV[:1] + _GOOGLE_ENV,
        credential_files=(CredentialFile(".config/goose/config.yaml"),),
    ),
    Agent(
        id="copilot",
        title="GitHub Copilot",
        adapters=(("copilot", "--acp"),),
        native="copilot",
        native_args=("--acp",),
        capabilities=AgentCapabilities(
            plan_mode=True,
            permissions=True,
            tool_calls=True,
            tool_results=True,
            text_messages=True,
            images=True,
            file_attachments=True,
            session_lifecycle=True,
            error_events=True,
            reasoning=True,
            status=True,
            command_execution=True,
            file_changes=True,
            mcp_tools=True,
            streaming_deltas=True,
            item_started=True,
        ),
        credential_env=("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN"),
        credential_files=(CredentialFile(".copilot/config.json", ("logged_in_users", "copilot_tokens")),),
    ),
)

CATALOGUE: dict[str, Agent] = {agent.id: agent for agent in _AGENTS}
