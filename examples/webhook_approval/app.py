"""Permission requests of an agent are sent to a webhook, such as that of a chat, and approved by a link.

    pip install 'sandbox-agent-py[server]' fastapi
    WEBHOOK_URL=https://chat.example/hook APPROVAL_SECRET=... PUBLIC_URL=http://127.0.0.1:8000 uvicorn app:app
    curl 127.0.0.1:8000/tasks/build --json '{"prompt": "permission"}'
    curl 127.0.0.1:8000/tasks/build

The webhook receives {"text", "approve", "reject"}. The last two are URLs: a POST to one of them answers. They
are signed, so that only their receiver can answer.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import quote

import httpx2
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from sandbox_agent import PermissionRequest, SandboxAgent, SandboxAgentError, Session, local

AGENT = os.environ.get("AGENT", "mock")
STORE = os.environ.get("STORE", "sqlite:tasks.db")
WEBHOOK_URL = os.environ["WEBHOOK_URL"]
PUBLIC_URL = os.environ["PUBLIC_URL"]
SECRET = os.environ["APPROVAL_SECRET"].encode()

Reply = Literal["once", "reject"]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Run a server with agents, and a client for the webhook."""
    async with (
        SandboxAgent.start(sandbox=local(log="silent"), persist=STORE) as app.state.sdk,
        httpx2.AsyncClient() as app.state.http,
    ):
        app.state.sessions = {}
        yield


app = FastAPI(lifespan=lifespan)


class Task(BaseModel):
    """What the agent is to do."""

    prompt: str


def sign(name: str, request_id: str, reply: str) -> str:
    """Return what proves that a link was made by this program."""
    text = "\0".join((name, request_id, reply)).encode()
    return hmac.new(SECRET, text, hashlib.sha256).hexdigest()


def link(name: str, request_id: str, reply: Reply) -> str:
    """Return the URL to which a POST answers a request."""
    path = f"/tasks/{quote(name, safe='')}/permissions/{quote(request_id, safe='')}/{reply}"
    return f"{PUBLIC_URL}{path}?signature={sign(name, request_id, reply)}"


async def session_of(name: str) -> Session:
    """Return the session of a task, whose permission requests go to the webhook."""
    sessions: dict[str, Session] = app.state.sessions
    if name not in sessions:
        sdk: SandboxAgent = app.state.sdk
        session = await sdk.resume_or_create_session(id=name, agent=AGENT, permission_policy="ask")

        async def notify(request: PermissionRequest) -> None:
            message = {
                "text": f"{name}: {request.tool_call.get('title') or 'a tool'}",
                "approve": link(name, request.id, "once"),
                "reject": link(name, request.id, "reject"),
            }
            http: httpx2.AsyncClient = app.state.http
            (await http.post(WEBHOOK_URL, json=message)).raise_for_status()

        if name not in sessions:  # another request may have been faster
            sessions[name] = session
            session.on_permission_request(notify)
    return sessions[name]


@app.post("/tasks/{name}", status_code=202)
async def begin(name: str, task: Task) -> dict[str, str]:
    """Send a prompt; the turn continues when this has returned."""
    session = await session_of(name)
    await anext(session.stream(task.prompt))
    return {"id": session.id}


@app.get("/tasks/{name}")
async def status(name: str) -> dict[str, Any]:
    """Return whether the agent works, and what waits for an answer."""
    session = await session_of(name)
    waiting = [request.to_dict() for request in session.pending_permissions()]
    return {"running": session.turn is not None, "waiting": waiting}


@app.post("/tasks/{name}/permissions/{request_id}/{reply}", status_code=204)
async def answer(name: str, request_id: str, reply: Reply, signature: str) -> None:
    """Answer a permission request."""
    if not hmac.compare_digest(signature.encode(), sign(name, request_id, reply).encode()):
        raise HTTPException(403, "the signature is wrong")
    try:
        await (await session_of(name)).respond_permission(request_id, reply)
    except SandboxAgentError as error:
        raise HTTPException(409, str(error)) from None
