"""OpenAI Chat Completions: ``POST …/chat/completions``."""

from __future__ import annotations

import json
from collections.abc import Iterator

from sandbox_agent.testing.llm.request import LLMRequest, Message, Object, objects, since_prompt, text_of
from sandbox_agent.testing.llm.script import Pause, Reply

_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def read(body: Object, path: str) -> LLMRequest:
    """Return the request."""
    messages: list[Message] = []
    for message in objects(body.get("messages")):
        if message.get("role") == "tool":
            # The results of one response's calls are messages that follow each other.
            earlier = messages.pop().results if messages and messages[-1].results else ()
            messages.append(Message([*earlier, text_of(message.get("content"))]))
        elif message.get("role") == "user":
            content = message.get("content")
            texts = [content] if isinstance(content, str) else [text_of(each) for each in objects(content)]
            messages.append(Message(texts=[text for text in texts if text]))
        else:
            messages.append(Message())
    prompt, results = since_prompt(messages)
    tools = [tool.get("function") or tool for tool in objects(body.get("tools"))]
    return LLMRequest(
        api="chat",
        model=str(body.get("model")),
        streaming=bool(body.get("stream")),
        tools=tuple(str(tool.get("name")) for tool in tools),
        prompt=prompt,
        results=results,
        effort=body.get("reasoning_effort"),
        body=body,
    )


def document(request: LLMRequest, reply: Reply, number: int) -> Object:
    """Return the response that is not streamed."""
    message: Object = {"role": "assistant", "content": reply.text}
    if reply.thinking is not None:
        message["reasoning_content"] = reply.thinking
    if reply.calls:
        message["tool_calls"] = _calls(reply, number)
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(reply)}
    return {**_head(request, number, "chat.completion"), "choices": [choice], "usage": _USAGE}


def events(request: LLMRequest, reply: Reply, number: int) -> Iterator[Object | str | Pause]:
    """Return the events of the streamed response."""
    head = _head(request, number, "chat.completion.chunk")

    def chunk(delta: Object, finish: str | None = None) -> Object:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    if reply.thinking is not None:
        yield chunk({"reasoning_content": reply.thinking})
    for piece in reply.pieces():
        yield piece if isinstance(piece, Pause) else chunk({"content": piece})
    if reply.calls:
        yield chunk({"tool_calls": _calls(reply, number)})
    yield chunk({}, _finish_reason(reply))
    yield {**head, "choices": [], "usage": _USAGE}
    yield "[DONE]"


def error(status: int, message: str) -> Object:
    """Return the body of an error."""
    kinds = {400: "invalid_request_error", 401: "authentication_error"}
    return {"error": {"message": message, "type": kinds.get(status, "server_error"), "code": None}}


def _head(request: LLMRequest, number: int, kind: str) -> Object:
    return {"id": f"chatcmpl-{number:06d}", "object": kind, "created": 1_700_000_000, "model": request.model}


def _finish_reason(reply: Reply) -> str:
    return "tool_calls" if reply.calls else "stop"


def _calls(reply: Reply, number: int) -> list[Object]:
    return [
        {
            "index": index,
            "id": f"call_{number:06d}_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for index, call in enumerate(reply.calls)
    ]
