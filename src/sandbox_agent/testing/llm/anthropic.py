"""Anthropic Messages: ``POST …/v1/messages``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sandbox_agent.testing.llm.request import LLMRequest, Message, Object, objects, since_prompt, text_of
from sandbox_agent.testing.llm.script import Pause, Reply

_USAGE = {
    "input_tokens": 10,
    "output_tokens": 5,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
}


def read(body: Object, path: str) -> LLMRequest:
    """Return the request."""
    prompt, results = since_prompt([_message(each) for each in objects(body.get("messages"))])
    config: Object = body.get("output_config") or {}
    return LLMRequest(
        api="anthropic",
        model=str(body.get("model")),
        streaming=bool(body.get("stream")),
        tools=tuple(str(tool.get("name")) for tool in objects(body.get("tools"))),
        prompt=prompt,
        results=results,
        effort=config.get("effort"),
        body=body,
    )


def _message(message: Object) -> Message:
    if message.get("role") != "user":  # Claude Code also puts messages of the role "system" in between
        return Message()
    content = message.get("content")
    if isinstance(content, str):
        return Message(texts=[content])
    blocks = objects(content)
    results = [block for block in blocks if block.get("type") == "tool_result"]
    texts = [str(block.get("text")) for block in blocks if block.get("type") == "text"]
    return Message([text_of(block.get("content")) for block in results], texts)


def document(request: LLMRequest, reply: Reply, number: int) -> Object:
    """Return the response that is not streamed."""
    return {
        **_head(request, number),
        "content": _blocks(reply, number),
        "stop_reason": _stop_reason(reply),
    }


def events(request: LLMRequest, reply: Reply, number: int) -> Iterator[Object | str | Pause]:
    """Return the events of the streamed response."""
    yield {"type": "message_start", "message": {**_head(request, number), "content": []}}
    for index, block in enumerate(_blocks(reply, number)):
        start, deltas = _deltas(block, reply)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield (
                delta
                if isinstance(delta, Pause)
                else {"type": "content_block_delta", "index": index, "delta": delta}
            )
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": _stop_reason(reply), "stop_sequence": None},
        "usage": {"output_tokens": 5},
    }
    yield {"type": "message_stop"}


def error(status: int, message: str) -> Object:
    """Return the body of an error."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}


def _head(request: LLMRequest, number: int) -> Object:
    return {
        "id": f"msg_{number:06d}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _USAGE,
    }


def _stop_reason(reply: Reply) -> str:
    return "tool_use" if reply.calls else "end_turn"


def _blocks(reply: Reply, number: int) -> list[Object]:
    blocks: list[Object] = [{"type": "text", "text": reply.text}]
    if reply.thinking is not None:
        blocks.insert(0, {"type": "thinking", "thinking": reply.thinking, "signature": "c2NyaXB0"})
    for index, call in enumerate(reply.calls):
        blocks.append(
            {
                "type": "tool_use",
                "id": f"toolu_{number:06d}_{index}",
                "name": call.name,
                "input": call.arguments,
            }
        )
    return blocks


def _deltas(block: Object, reply: Reply) -> tuple[Object, list[Any]]:
    if block["type"] == "text":
        pieces = [
            piece if isinstance(piece, Pause) else {"type": "text_delta", "text": piece}
            for piece in reply.pieces()
        ]
        return {"type": "text", "text": ""}, pieces
    if block["type"] == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}, [
            {"type": "thinking_delta", "thinking": block["thinking"]},
            {"type": "signature_delta", "signature": block["signature"]},
        ]
    arguments = json.dumps(block["input"])
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": arguments}]
