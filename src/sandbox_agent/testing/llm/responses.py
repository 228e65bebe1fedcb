"""OpenAI Responses: ``POST …/responses``."""

from __future__ import annotations

import json
from collections.abc import Iterator

from sandbox_agent.testing.llm.request import LLMRequest, Message, Object, objects, since_prompt, text_of
from sandbox_agent.testing.llm.script import Call, Pause, Reply
from sandbox_agent.wire.jsonrpc import members

_USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 15,
}


def read(body: Object, path: str) -> LLMRequest:
    """Return the request."""
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else objects(given)
    messages: list[Message] = []
    for item in items:
        if str(item.get("type")).endswith("_output"):
            # The results of one response's calls are items that follow each other.
            earlier = messages.pop().results if messages and messages[-1].results else ()
            messages.append(Message([*earlier, text_of(item)]))
        elif item.get("role") == "user":
            messages.append(Message(texts=[text_of(item)]))
        else:
            messages.append(Message())
    prompt, results = since_prompt(messages)
    return LLMRequest(
        api="responses",
        model=str(body.get("model")),
        streaming=bool(body.get("stream")),
        tools=tuple(_tools(body)),
        prompt=prompt,
        results=results,
        effort=members(body.get("reasoning")).get("effort"),
        body=body,
    )


def _tools(body: Object) -> dict[str, Object]:
    """Return the tools by name: of a namespace, such as an MCP server's, those that are in it."""
    found: dict[str, Object] = {}
    # Codex offers those of newer models in an item of the input.
    more = [item for item in objects(body.get("input")) if item.get("type") == "additional_tools"]
    for tool in [tool for place in (body, *more) for tool in objects(place.get("tools"))]:
        if tool.get("type") == "namespace":
            found |= {
                str(each.get("name")): {**each, "namespace": tool.get("name")}
                for each in objects(tool.get("tools"))
            }
        else:
            found[str(tool.get("name") or tool.get("type"))] = tool
    return found


def document(request: LLMRequest, reply: Reply, number: int) -> Object:
    """Return the response that is not streamed."""
    return _response(request, number, "completed", _items(request, reply, number))


def events(request: LLMRequest, reply: Reply, number: int) -> Iterator[Object | str | Pause]:
    """Return the events of the streamed response."""
    for sequence, event in enumerate(_events(request, reply, number)):
        yield event if isinstance(event, Pause) else {**event, "sequence_number": sequence}


def _events(request: LLMRequest, reply: Reply, number: int) -> Iterator[Object | Pause]:
    begun = _response(request, number, "in_progress", [])
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    items = _items(request, reply, number)
    for index, item in enumerate(items):
        place = {"item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.added", "output_index": index, "item": _empty(item)}
        if item["type"] == "reasoning":
            (part,) = item["summary"]
            at = {**place, "summary_index": 0}
            empty = {"type": "summary_text", "text": ""}
            yield {"type": "response.reasoning_summary_part.added", **at, "part": empty}
            yield {"type": "response.reasoning_summary_text.delta", **at, "delta": part["text"]}
            yield {"type": "response.reasoning_summary_text.done", **at, "text": part["text"]}
        elif item["type"] == "message":
            (part,) = item["content"]
            at = {**place, "content_index": 0}
            empty = {**part, "text": ""}
            yield {"type": "response.content_part.added", **at, "part": empty}
            for piece in reply.pieces():
                if isinstance(piece, Pause):
                    yield piece
                else:
                    yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
            yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []}
            yield {"type": "response.content_part.done", **at, "part": part}
        elif item["type"] == "function_call":
            arguments = item["arguments"]
            yield {"type": "response.function_call_arguments.delta", **place, "delta": arguments}
            yield {"type": "response.function_call_arguments.done", **place, "arguments": arguments}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": "response.completed", "response": _response(request, number, "completed", items)}


def error(status: int, message: str) -> Object:
    """Return the body of an error."""
    kinds = {400: "invalid_request_error", 401: "authentication_error"}
    return {"error": {"message": message, "type": kinds.get(status, "server_error"), "code": None}}


def _response(request: LLMRequest, number: int, status: str, output: list[Object]) -> Object:
    return {
        "id": f"resp_{number:06d}",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "model": request.model,
        "output": output,
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": _USAGE if status == "completed" else None,
    }


def _items(request: LLMRequest, reply: Reply, number: int) -> list[Object]:
    """Return the items of the response, complete."""
    items: list[Object] = []
    if reply.thinking is not None:
        summary = [{"type": "summary_text", "text": reply.thinking}]
        items.append({"id": f"rs_{number:06d}", "type": "reasoning", "summary": summary})
    text = "".join(piece for piece in reply.pieces() if isinstance(piece, str))
    part: Object = {"type": "output_text", "text": text, "annotations": []}
    message = {"id": f"msg_{number:06d}", "type": "message", "status": "completed", "role": "assistant"}
    items.append({**message, "content": [part]})
    tools = _tools(dict(request.body))
    calls = enumerate(reply.calls)
    return [*items, *(_call(call, tools.get(call.name, {}), f"{number:06d}_{at}") for at, call in calls)]


def _call(call: Call, tool: Object, name: str) -> Object:
    namespace, _, own_name = call.name.rpartition("/")
    item: Object = {"status": "completed", "call_id": f"call_{name}", "name": own_name}
    if tool.get("type") == "custom":  # its argument is a text
        text = str(call.arguments.get("input", ""))
        return {"id": f"ctc_{name}", "type": "custom_tool_call", **item, "input": text}
    if namespace := namespace or tool.get("namespace"):
        item["namespace"] = namespace
    return {"id": f"fc_{name}", "type": "function_call", **item, "arguments": json.dumps(call.arguments)}


def _empty(item: Object) -> Object:
    """Return an item as it is when it is added."""
    values: Object = {"content": [], "summary": [], "arguments": "", "input": ""}
    begun = {name: value for name, value in values.items() if name in item}
    return {**item, **begun, **({"status": "in_progress"} if "status" in item else {})}
