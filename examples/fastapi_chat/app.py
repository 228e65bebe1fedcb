"""A chat with a coding agent in a web page, with buttons for its permission requests.

    pip install 'sandbox-agent-py[server]' fastapi
    AGENT=mock uvicorn app:app --port 8000

Then open http://127.0.0.1:8000. It has no login: let it listen on 127.0.0.1 only, or add one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse

from sandbox_agent import SandboxAgent, local
from sandbox_agent.web import websocket_endpoint

HERE = Path(__file__).parent
AGENT = os.environ.get("AGENT", "mock")
STORE = os.environ.get("STORE", "sqlite:chat.db")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Run a server with agents as long as the application runs."""
    async with SandboxAgent.start(sandbox=local(log="silent"), persist=STORE) as app.state.sdk:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(HERE / "index.html")


@app.get("/chat.js")
async def script() -> FileResponse:
    """Return the page's script."""
    return FileResponse(HERE / "chat.js")


@app.websocket("/sessions/{name}")
async def socket(name: str, websocket: WebSocket) -> None:
    """Connect the page with its session."""
    # Pages of other sites can open WebSockets, too.
    origin = websocket.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != websocket.headers.get("host"):
        await websocket.close(1008)
        return
    sdk: SandboxAgent = app.state.sdk
    session = await sdk.resume_or_create_session(id=name, agent=AGENT, permission_policy="ask")
    await websocket_endpoint(session, websocket)
