"""A small coding agent with ACP on stdio: its model is one of OpenAI's Chat Completions, it has one tool.

Its argument is a habit: "good", or "bold", which never asks before it writes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx2

HABIT = sys.argv[1]
FOLDER = Path.home() / ".llm-agent"
MODELS, MODES = ["scripted-model", "scripted-model-2"], ["default", "plan", "bypassPermissions"]
TOOL = {"type": "function", "function": {"name": "write_file", "parameters": {"type": "object"}}}
Object = dict[str, Any]


class Agent:
    """The agent: its sessions, and the requests that it waits for."""

    def __init__(self) -> None:
        self.sessions: dict[str, Object] = {}
        self.turns: dict[str, asyncio.Task[None]] = {}
        self.asked: dict[str, asyncio.Future[Any]] = {}
        self.http = httpx2.AsyncClient(timeout=None, trust_env=False)

    def send(self, **message: Any) -> None:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()

    def update(self, session_id: str, kind: str, /, **fields: Any) -> None:
        params = {"sessionId": session_id, "update": {"sessionUpdate": kind, **fields}}
        self.send(method="session/update", params=params)

    def say(self, session_id: str, kind: str, text: str | None) -> None:
        if text:
            self.update(session_id, kind, content={"type": "text", "text": text})

    async def serve(self) -> None:
        reader = asyncio.StreamReader(limit=2**24)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            message = json.loads(line)
            if "method" not in message:
                asked = self.asked.pop(message["id"])
                if not asked.done():  # its turn was not cancelled
                    asked.set_result(message.get("result"))
            elif message["method"] == "session/cancel":
                if turn := self.turns.get(message["params"]["sessionId"]):
                    turn.cancel()
            elif message["method"] == "session/prompt":
                session_id = message["params"]["sessionId"]
                self.turns[session_id] = asyncio.create_task(self.turn(session_id, message))
            else:
                self.answer(message)

    def answer(self, message: Object) -> None:
        method: str = message["method"]
        params: Object = message.get("params") or {}
        session_id = str(params.get("sessionId"))
        if method == "initialize":
            result: Object = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}
        elif method == "session/new":
            session_id = os.urandom(6).hex()
            self.sessions[session_id] = {"model": MODELS[0], "mode": MODES[0], "messages": []}
            result = {"sessionId": session_id, "configOptions": self.options(session_id)}
            result["_meta"] = {"env": dict(os.environ)}
        elif method == "session/load":
            session = self.sessions[session_id] = json.loads((FOLDER / session_id).read_text())
            for said in session["messages"]:
                kind = {"user": "user_message_chunk", "assistant": "agent_message_chunk"}.get(said["role"])
                if kind and isinstance(said["content"], str):
                    self.say(session_id, kind, said["content"])
            session |= {"model": MODELS[0], "mode": MODES[0]}  # it forgets its settings, as some do
            result = {"configOptions": self.options(session_id)}
        elif method == "session/set_config_option":
            self.sessions[session_id][params["configId"]] = params["value"]
            result = {"configOptions": self.options(session_id)}
        else:
            self.send(id=message["id"], error={"code": -32601, "message": "Method not found"})
            return
        self.send(id=message["id"], result=result)

    def options(self, session_id: str) -> list[Object]:
        session = self.sessions[session_id]
        return [
            {
                "id": name,
                "name": name,
                "category": name,
                "type": "select",
                "currentValue": session[name],
                "options": [{"value": value, "name": value} for value in values],
            }
            for name, values in (("model", MODELS), ("mode", MODES))
        ]

    async def turn(self, session_id: str, message: Object) -> None:
        messages: list[Object] = self.sessions[session_id]["messages"]
        content: list[Object] = []
        for block in message["params"]["prompt"]:
            if block["type"] == "image":
                url = f"data:{block['mimeType']};base64,{block['data']}"
                content.append({"type": "image_url", "image_url": {"url": url}})
            else:
                content.append({"type": "text", "text": block["text"]})
        texts = [block["text"] for block in content if block["type"] == "text"]
        plain = len(texts) == len(content)
        messages.append({"role": "user", "content": "\n".join(texts) if plain else content})
        try:
            while await self.step(session_id):
                pass
        except asyncio.CancelledError:
            self.send(id=message["id"], result={"stopReason": "cancelled"})
        except httpx2.HTTPStatusError as error:
            messages.pop()
            self.send(id=message["id"], error={"code": -32603, "message": error.response.text})
        else:
            self.send(id=message["id"], result={"stopReason": "end_turn"})
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / session_id).write_text(json.dumps(self.sessions[session_id]))

    async def step(self, session_id: str) -> bool:
        """Ask the model once; return whether it has to be asked again."""
        session = self.sessions[session_id]
        body = {"model": session["model"], "messages": session["messages"], "tools": [TOOL], "stream": True}
        said: Object = {"role": "assistant", "content": ""}
        url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
        async with self.http.stream("POST", url, json=body) as response:
            if response.is_error:
                await response.aread()
                response.raise_for_status()
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                choices: list[Object] = json.loads(data)["choices"] if data.startswith("{") else []
                for choice in choices:
                    delta: Object = choice["delta"]
                    said["content"] += delta.get("content") or ""
                    self.say(session_id, "agent_thought_chunk", delta.get("reasoning_content"))
                    self.say(session_id, "agent_message_chunk", delta.get("content"))
                    said |= {"tool_calls": delta["tool_calls"]} if "tool_calls" in delta else {}
        session["messages"].append(said)
        for call in said.get("tool_calls", []):
            result = await self.write(session_id, call["id"], json.loads(call["function"]["arguments"]))
            session["messages"].append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return "tool_calls" in said

    async def write(self, session_id: str, call: str, arguments: Object) -> str:
        tool = {"toolCallId": call, "title": "Write a file", "kind": "edit", "status": "pending"}
        self.update(session_id, "tool_call", **tool)
        allowed = True
        if HABIT != "bold" and self.sessions[session_id]["mode"] == "default":
            kinds = ("allow_once", "reject_once")
            options = [{"optionId": kind, "name": kind, "kind": kind} for kind in kinds]
            params = {"sessionId": session_id, "toolCall": tool, "options": options}
            self.asked[call] = asyncio.get_running_loop().create_future()
            self.send(id=call, method="session/request_permission", params=params)
            allowed = (await self.asked[call])["outcome"].get("optionId") == "allow_once"
        if allowed:
            Path(arguments["path"]).write_text(arguments["content"])  # noqa: ASYNC240 - a moment
        status = "completed" if allowed else "failed"
        self.update(session_id, "tool_call_update", toolCallId=call, status=status)
        return "written" if allowed else "rejected"


asyncio.run(Agent().serve())
