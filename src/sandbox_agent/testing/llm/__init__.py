"""A scripted language model on loopback, for coding agents that run without a network or a key.

It offers Anthropic Messages, OpenAI Responses, OpenAI Chat Completions and Gemini, streaming and not::

    async with ScriptedLLM() as llm:
        env = {"ANTHROPIC_BASE_URL": llm.url, "ANTHROPIC_API_KEY": "any"}
        ...  # prompt an agent that has these variables with "[[think Two things.]] [[say Done.]]"
        print(llm.requests[-1].model)

Directives in the user's prompt say what the model does; ``script`` describes them. A function of
the request can replace them: ``ScriptedLLM(lambda request: Reply(text="Hello"))``.
"""

from sandbox_agent.extras import require_server

require_server("sandbox_agent.testing.llm")

from sandbox_agent.testing.llm.request import LLMRequest  # noqa: E402 - the error names the extra
from sandbox_agent.testing.llm.script import STALLED_TEXT, Call, Reply  # noqa: E402 - the error names the extra
from sandbox_agent.testing.llm.server import ScriptedLLM  # noqa: E402 - the error names the extra

__all__ = ["STALLED_TEXT", "Call", "LLMRequest", "Reply", "ScriptedLLM"]
