"""Config options of agents that aren't running: what ``/v1/agents?config=true`` shows then.

They are those that the published 0.4.2 server shows, so that clients see the same on both; an installed
agent is asked for its own.
"""

from __future__ import annotations

from typing import Any

from sandbox_agent.agents.mock.options import DEFAULTS, config_options

__all__ = ["fallback_options"]

_Choices = tuple[tuple[str, str], ...]
_NAMES = {"model": "Model", "mode": "Mode", "thought_level": "Thought Level"}

# By agent and category: the current value, and (value, name) of each choice.
_OPTIONS: dict[str, dict[str, tuple[str, _Choices]]] = {
    "claude": {
        "model": (
            "default",
            (
                ("default", "Default"),
                ("sonnet", "Sonnet"),
                ("opus", "Opus"),
                ("haiku", "Haiku"),
            ),
        ),
        "mode": (
            "default",
            (
                ("default", "Default"),
                ("acceptEdits", "Accept Edits"),
                ("plan", "Plan"),
                ("dontAsk", "Don't Ask"),
                ("bypassPermissions", "Bypass Permissions"),
            ),
        ),
    },
    "codex": {
        "model": (
            "gpt-5.3-codex",
            (
                ("gpt-5.3-codex", "gpt-5.3-codex"),
                ("gpt-5.3-codex-spark", "GPT-5.3-Codex-Spark"),
                ("gpt-5.2-codex", "gpt-5.2-codex"),
                ("gpt-5.1-codex-max", "gpt-5.1-codex-max"),
                ("gpt-5.2", "gpt-5.2"),
                ("gpt-5.1-codex-mini", "gpt-5.1-codex-mini"),
            ),
        ),
        "mode": (
            "read-only",
            (
                ("read-only", "Read Only"),
                ("auto", "Default"),
                ("full-access", "Full Access"),
            ),
        ),
        "thought_level": (
            "high",
            (
                ("low", "Low"),
                ("medium", "Medium"),
                ("high", "High"),
                ("xhigh", "Xhigh"),
            ),
        ),
    },
    "opencode": {
        "model": (
            "opencode/gemini-3-pro",
            (
                ("anthropic/claude-3-5-haiku-20241022", "Anthropic/Claude Haiku 3.5"),
                ("anthropic/claude-3-5-haiku-latest", "Anthropic/Claude Haiku 3.5 (latest)"),
                ("anthropic/claude-3-5-sonnet-20240620", "Anthropic/Claude Sonnet 3.5"),
                ("anthropic/claude-3-5-sonnet-20241022", "Anthropic/Claude Sonnet 3.5 v2"),
                ("anthropic/claude-3-7-sonnet-20250219", "Anthropic/Claude Sonnet 3.7"),
                ("anthropic/claude-3-7-sonnet-latest", "Anthropic/Claude Sonnet 3.7 (latest)"),
                ("anthropic/claude-3-haiku-20240307", "Anthropic/Claude Haiku 3"),
                ("anthropic/claude-3-opus-20240229", "Anthropic/Claude Opus 3"),
                ("anthropic/claude-3-sonnet-20240229", "Anthropic/Claude Sonnet 3"),
                ("anthropic/claude-haiku-4-5", "Anthropic/Claude Haiku 4.5 (latest)"),
                ("anthropic/claude-haiku-4-5-20251001", "Anthropic/Claude Haiku 4.5"),
                ("anthropic/claude-opus-4-0", "Anthropic/Claude Opus 4 (latest)"),
                ("anthropic/claude-opus-4-1", "Anthropic/Claude Opus 4.1 (latest)"),
                ("anthropic/claude-opus-4-1-20250805", "Anthropic/Claude Opus 4.1"),
                ("anthropic/claude-opus-4-20250514", "Anthropic/Claude Opus 4"),
                ("anthropic/claude-opus-4-5", "Anthropic/Claude Opus 4.5 (latest)"),
                ("anthropic/claude-opus-4-5-20251101", "Anthropic/Claude Opus 4.5"),
                ("anthropic/claude-opus-4-6", "Anthropic/Claude Opus 4.6"),
                ("anthropic/claude-sonnet-4-0", "Anthropic/Claude Sonnet 4 (latest)"),
                ("anthropic/claude-sonnet-4-20250514", "Anthropic/Claude Sonnet 4"),
                ("anthropic/claude-sonnet-4-5", "Anthropic/Claude Sonnet 4.5 (latest)"),
                ("anthropic/claude-sonnet-4-5-20250929", "Anthropic/Claude Sonnet 4.5"),
                ("cerebras/gpt-oss-120b", "Cerebras/GPT OSS 120B"),
                ("cerebras/qwen-3-235b-a22b-instruct-2507", "Cerebras/Qwen 3 235B Instruct"),
                ("cerebras/zai-glm-4.7", "Cerebras/Z.AI GLM-4.7"),
                ("openai/gpt-5.1-codex", "OpenAI/GPT-5.1 Codex"),
                ("openai/gpt-5.1-codex-max", "OpenAI/GPT-5.1 Codex Max"),
                ("openai/gpt-5.1-codex-mini", "OpenAI/GPT-5.1 Codex mini"),
                ("openai/gpt-5.2", "OpenAI/GPT-5.2"),
                ("openai/gpt-5.2-codex", "OpenAI/GPT-5.2 Codex"),
                ("openai/gpt-5.3-codex", "OpenAI/GPT-5.3 Codex"),
                ("opencode/big-pickle", "OpenCode Zen/Big Pickle"),
                ("opencode/claude-3-5-haiku", "OpenCode Zen/Claude Haiku 3.5"),
                ("opencode/claude-haiku-4-5", "OpenCode Zen/Claude Haiku 4.5"),
                ("opencode/claude-opus-4-1", "OpenCode Zen/Claude Opus 4.1"),
                ("opencode/claude-opus-4-5", "OpenCode Zen/Claude Opus 4.5"),
                ("opencode/claude-opus-4-6", "OpenCode Zen/Claude Opus 4.6"),
                ("opencode/claude-sonnet-4", "OpenCode Zen/Claude Sonnet 4"),
                ("opencode/claude-sonnet-4-5", "OpenCode Zen/Claude Sonnet 4.5"),
                ("opencode/gemini-3-flash", "OpenCode Zen/Gemini 3 Flash"),
                ("opencode/gemini-3-pro", "OpenCode Zen/Gemini 3 Pro"),
                ("opencode/glm-4.6", "OpenCode Zen/GLM-4.6"),
                ("opencode/glm-4.7", "OpenCode Zen/GLM-4.7"),
                ("opencode/gpt-5", "OpenCode Zen/GPT-5"),
                ("opencode/gpt-5-codex", "OpenCode Zen/GPT-5 Codex"),
                ("opencode/gpt-5-nano", "OpenCode Zen/GPT-5 Nano"),
                ("opencode/gpt-5.1", "OpenCode Zen/GPT-5.1"),
                ("opencode/gpt-5.1-codex", "OpenCode Zen/GPT-5.1 Codex"),
                ("opencode/gpt-5.1-codex-max", "OpenCode Zen/GPT-5.1 Codex Max"),
                ("opencode/gpt-5.1-codex-mini", "OpenCode Zen/GPT-5.1 Codex Mini"),
                ("opencode/gpt-5.2", "OpenCode Zen/GPT-5.2"),
                ("opencode/gpt-5.2-codex", "OpenCode Zen/GPT-5.2 Codex"),
                ("opencode/kimi-k2", "OpenCode Zen/Kimi K2"),
                ("opencode/kimi-k2-thinking", "OpenCode Zen/Kimi K2 Thinking"),
                ("opencode/kimi-k2.5", "OpenCode Zen/Kimi K2.5"),
                ("opencode/kimi-k2.5-free", "OpenCode Zen/Kimi K2.5 Free"),
                ("opencode/minimax-m2.1", "OpenCode Zen/MiniMax M2.1"),
                ("opencode/minimax-m2.1-free", "OpenCode Zen/MiniMax M2.1 Free"),
                ("opencode/trinity-large-preview-free", "OpenCode Zen/Trinity Large Preview"),
            ),
        ),
        "mode": (
            "build",
            (
                ("build", "Build"),
                ("plan", "Plan"),
            ),
        ),
    },
    "amp": {
        "model": ("amp-default", (("amp-default", "Amp Default"),)),
        "mode": (
            "default",
            (
                ("default", "Default"),
                ("bypass", "Bypass"),
            ),
        ),
    },
    "pi": {
        "model": ("default", (("default", "Default"),)),
    },
    "cursor": {
        "model": (
            "opus-4.6-thinking",
            (
                ("auto", "Auto"),
                ("composer-1.5", "Composer 1.5"),
                ("composer-1", "Composer 1"),
                ("gpt-5.3-codex", "GPT-5.3 Codex"),
                ("gpt-5.3-codex-low", "GPT-5.3 Codex Low"),
                ("gpt-5.3-codex-high", "GPT-5.3 Codex High"),
                ("gpt-5.3-codex-xhigh", "GPT-5.3 Codex Extra High"),
                ("gpt-5.3-codex-fast", "GPT-5.3 Codex Fast"),
                ("gpt-5.3-codex-low-fast", "GPT-5.3 Codex Low Fast"),
                ("gpt-5.3-codex-high-fast", "GPT-5.3 Codex High Fast"),
                ("gpt-5.3-codex-xhigh-fast", "GPT-5.3 Codex Extra High Fast"),
                ("gpt-5.2", "GPT-5.2"),
                ("gpt-5.2-codex", "GPT-5.2 Codex"),
                ("gpt-5.2-codex-high", "GPT-5.2 Codex High"),
                ("gpt-5.2-codex-low", "GPT-5.2 Codex Low"),
                ("gpt-5.2-codex-xhigh", "GPT-5.2 Codex Extra High"),
                ("gpt-5.2-codex-fast", "GPT-5.2 Codex Fast"),
                ("gpt-5.2-codex-high-fast", "GPT-5.2 Codex High Fast"),
                ("gpt-5.2-codex-low-fast", "GPT-5.2 Codex Low Fast"),
                ("gpt-5.2-codex-xhigh-fast", "GPT-5.2 Codex Extra High Fast"),
                ("gpt-5.1-codex-max", "GPT-5.1 Codex Max"),
                ("gpt-5.1-codex-max-high", "GPT-5.1 Codex Max High"),
                ("opus-4.6-thinking", "Claude 4.6 Opus (Thinking)"),
                ("gpt-5.2-high", "GPT-5.2 High"),
                ("opus-4.6", "Claude 4.6 Opus"),
                ("opus-4.5", "Claude 4.5 Opus"),
                ("opus-4.5-thinking", "Claude 4.5 Opus (Thinking)"),
                ("sonnet-4.5", "Claude 4.5 Sonnet"),
                ("sonnet-4.5-thinking", "Claude 4.5 Sonnet (Thinking)"),
                ("gpt-5.1-high", "GPT-5.1 High"),
                ("gemini-3-pro", "Gemini 3 Pro"),
                ("gemini-3-flash", "Gemini 3 Flash"),
                ("grok", "Grok"),
            ),
        ),
    },
}


def fallback_options(agent_id: str) -> list[dict[str, Any]]:
    """Return ACP's ``configOptions`` of an agent as far as they are known without asking it."""
    if agent_id == "mock":
        return config_options(dict(DEFAULTS))
    return [
        {
            "id": category,
            "name": _NAMES[category],
            "category": category,
            "type": "select",
            "currentValue": current,
            "options": [{"value": value, "name": name} for value, name in choices],
        }
        for category, (current, choices) in _OPTIONS.get(agent_id, {}).items()
    ]
