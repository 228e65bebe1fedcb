"""An agent behind Flask: a prompt in, text out, also while it is written.

pip install 'sandbox-agent-py[server]' flask
flask run
curl 127.0.0.1:5000/sessions/me/ask --json '{"prompt": "hello"}'
curl -N 127.0.0.1:5000/sessions/me/stream --json '{"prompt": "hello"}'
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

from flask import Flask, Response, jsonify, request

from sandbox_agent.sync import AgentMessageChunk, SandboxAgent, SandboxAgentError, Session, local

AGENT = os.environ.get("AGENT", "mock")
STORE = os.environ.get("STORE", "sqlite:flask.db")

app = Flask(__name__)


@cache
def client() -> SandboxAgent:
    """Return the client of this process: Gunicorn may have forked it."""
    return SandboxAgent.start(sandbox=local(log="silent"), persist=STORE)


def session_of(name: str) -> Session:
    """Return the session of that name, with its history."""
    return client().resume_or_create_session(id=name, agent=AGENT, permission_policy="reject")


@app.post("/sessions/<name>/ask")
def ask(name: str) -> Response:
    """Return what the agent says."""
    return jsonify(text=session_of(name).ask(request.get_json()["prompt"]))


@app.post("/sessions/<name>/stream")
def stream(name: str) -> Response:
    """Return what the agent says, while it is written."""
    turn = session_of(name).stream(request.get_json()["prompt"])

    def texts() -> Iterator[str]:
        for event in turn:
            if isinstance(event.update, AgentMessageChunk):
                yield event.update.text

    return Response(texts(), mimetype="text/plain")


@app.errorhandler(SandboxAgentError)
def failed(error: SandboxAgentError) -> tuple[Response, int]:
    """Say what failed."""
    return jsonify(error=str(error)), 502
