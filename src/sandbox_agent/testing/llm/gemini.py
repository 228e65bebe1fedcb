"""Gemini: ``POST …/models/<model>:generateContent`` and ``:streamGenerateContent``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from sandbox_agent.testing.llm.request import LLMRequest, Message, Object, objects, since_prompt
from sandbox_agent.testing.llm.script import Pause, Reply
from sandbox_agent.wire.jsonrpc import members

_USAGE = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
_PATH = re.compile(r"/models/([^:/]+):(\w+)$")
# Gemini CLI asks a model which of its models a prompt needs.
_ROUTING = {
    "reasoning": "scripted",
    "model_choice": "pro",
    "complexity_score": 50,
    "complexity_reasoning": "",
}


def read(body: Object, path: str) -> LLMRequest:
    """Return the request."""
    match = _PATH.search(path)
    given = body.get("contents")
    messages = [_message(each) for each in objects(given) or objects([given])]
    prompt, results = since_prompt(messages)
    declared = [objects(tool.get("functionDeclarations")) for tool in objects(body.get("tools"))]
    thinking = members(members(body.get("generationConfig")).get("thinkingConfig"))
    return LLMRequest(
        api="gemini",
        model=match[1] if match else "",
        streaming=match is not None and match[2] == "streamGenerateContent",
        tools=tuple(str(tool.get("name")) for tools in declared for tool in tools),
        prompt=prompt,
        results=results,
        effort=thinking.get("thinkingLevel"),
        body=body,
    )


def _message(content: Object) -> Message:
    if content.get("role") == "model":
        return Message()
    parts = objects(content.get("parts"))
    responses = [part["functionResponse"] for part in parts if "functionResponse" in part]
    results = [json.dumps(each.get("response"), ensure_ascii=False) for each in responses]
    return Message(results, [str(part["text"]) for part in parts if part.get("text")])


def document(request: LLMRequest, reply: Reply, number: int) -> Object:
    """Return the response that is not streamed."""
    config: Object = request.body.get("generationConfig") or {}
    text = json.dumps(_ROUTING) if config.get("responseMimeType") == "application/json" else reply.text
    thoughts = [] if reply.thinking is None else [{"text": reply.thinking, "thought": True}]
    return _part(request, number, [*thoughts, {"text": text}, *_calls(reply)], "STOP")


def events(request: LLMRequest, reply: Reply, number: int) -> Iterator[Object | str | Pause]:
    """Return the events of the streamed response."""
    if reply.thinking is not None:
        yield _part(request, number, [{"text": reply.thinking, "thought": True}])
    for piece in reply.pieces():
        yield piece if isinstance(piece, Pause) else _part(request, number, [{"text": piece}])
    yield _part(request, number, _calls(reply) or [{"text": ""}], "STOP")


def error(status: int, message: str) -> Object:
    """Return the body of an error."""
    names = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}
    return {"error": {"code": status, "message": message, "status": names.get(status, "INTERNAL")}}


def _part(request: LLMRequest, number: int, parts: list[Object], finish: str | None = None) -> Object:
    candidate: Object = {"index": 0, "content": {"role": "model", "parts": parts}}
    if finish is not None:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": _USAGE,
        "modelVersion": request.model,
        "responseId": f"response-{number}",
    }


def _calls(reply: Reply) -> list[Object]:
    return [{"functionCall": {"name": call.name, "args": call.arguments}} for call in reply.calls]
