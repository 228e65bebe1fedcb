"""Examples that are web applications."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from fastapi import FastAPI, Request
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from tests.support.npm import AI_SDK, npm_or_skip
from tests.support.servers import our_server
from tests.web.conftest import listening

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = Path(__file__).parents[1] / "support/node"
TIMEOUT = 60


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def load(name: str) -> Any:
    """Import the program of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    folders = [path.name for path in EXAMPLES.iterdir() if path.is_dir()]
    assert folders
    assert [name for name in folders if f"[{name}](" not in listed] == []


@pytest.mark.anyio
async def test_a_page_chats_and_allows_a_tool() -> None:
    app = load("fastapi_chat").app
    with anyio.fail_after(TIMEOUT):
        async with listening(app) as url, httpx2.AsyncClient(base_url=url) as client:
            for path, kind in (("/", "text/html"), ("/chat.js", "javascript")):
                found = await client.get(path)
                assert kind in found.headers["content-type"]
            async with connect(f"{url.replace('http', 'ws', 1)}/sessions/s", origin=Origin(url)) as socket:
                await socket.send(json.dumps({"type": "prompt", "prompt": "permission"}))
                said = ""
                async for text in socket:
                    frame = json.loads(text)
                    if frame["type"] == "turn_ended":
                        break
                    payload = frame["event"]["payload"]
                    said += update_text(payload)
                    if payload.get("method") == "session/request_permission":
                        answer = {"type": "permission", "id": frame["event"]["id"], "reply": "once"}
                        await socket.send(json.dumps(answer))
                assert "granted" in said
            async with connect(f"{url.replace('http', 'ws', 1)}/sessions/s?after=0") as socket:
                assert json.loads(await socket.recv())["event"]["eventIndex"] == 1


def update_text(payload: dict[str, Any]) -> str:
    update = payload.get("params", {}).get("update", {})
    is_text = update.get("sessionUpdate") == "agent_message_chunk"
    return update["content"]["text"] if is_text else ""


@pytest.mark.anyio
async def test_a_page_of_another_site_cannot_chat() -> None:
    app = load("fastapi_chat").app
    with anyio.fail_after(TIMEOUT):
        async with listening(app) as url:
            address = f"{url.replace('http', 'ws', 1)}/sessions/s"
            with pytest.raises(Exception, match="403") as refused:
                async with connect(address, origin=Origin("https://evil.example")):
                    pass
            assert not isinstance(refused.value, ConnectionClosed)


def test_the_script_of_the_page_is_javascript() -> None:
    if shutil.which("node") is None:
        pytest.skip("NOT TESTED: the script of the page (node is not on PATH)")
    copy = Path("chat.mjs")
    copy.write_bytes((EXAMPLES / "fastapi_chat/chat.js").read_bytes())
    subprocess.run(["node", "--check", str(copy)], check=True, timeout=TIMEOUT)


def test_flask_returns_what_the_agent_says() -> None:
    example = load("flask_app")
    client = example.app.test_client()
    try:
        answer = client.post("/sessions/me/ask", json={"prompt": "echo hello"})
        assert answer.get_json() == {"text": "hello"}
        streamed = client.post("/sessions/me/stream", json={"prompt": "echo streamed"})
        assert streamed.get_data(as_text=True) == "streamed"
        failed = client.post("/sessions/me/ask", json={"prompt": "die 3"})
        assert failed.status_code == 502
        assert "exit" in failed.get_json()["error"]
    finally:
        example.client().dispose()


@asynccontextmanager
async def webhook(received: asyncio.Queue[dict[str, Any]]) -> AsyncGenerator[str]:
    app = FastAPI()

    @app.post("/hook")
    async def hook(request: Request) -> None:  # pyright: ignore[reportUnusedFunction]
        received.put_nowait(await request.json())

    async with listening(app) as url:
        yield f"{url}/hook"


@pytest.mark.anyio
@pytest.mark.parametrize(("choice", "said"), [("approve", "granted"), ("reject", "rejected")])
async def test_a_link_in_a_webhook_answers(monkeypatch: pytest.MonkeyPatch, choice: str, said: str) -> None:
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    monkeypatch.setenv("APPROVAL_SECRET", hashlib.sha256(b"test").hexdigest())
    monkeypatch.setenv("PUBLIC_URL", "http://public.example")
    with anyio.fail_after(TIMEOUT):
        async with webhook(received) as hook:
            monkeypatch.setenv("WEBHOOK_URL", hook)
            example = load("webhook_approval")
            async with listening(example.app) as url, httpx2.AsyncClient(base_url=url) as client:
                begun = await client.post("/tasks/a b", json={"prompt": "permission"})
                assert begun.status_code == 202
                message = await received.get()
                link = message[choice].removeprefix("http://public.example")
                waiting = (await client.get("/tasks/a b")).json()
                assert waiting["running"]
                assert len(waiting["waiting"]) == 1
                assert (await client.post(f"{link}0")).status_code == 403
                assert (await client.post(link)).status_code == 204
                session = await example.session_of("a b")
                if session.turn is not None:
                    await session.turn
                assert (await client.get("/tasks/a b")).json() == {"running": False, "waiting": []}
                events = session.events()
                events.close()
                text = "".join([update_text(event.payload) async for event in events])
                assert said in text
                assert (await client.post(link)).status_code == 409


def test_the_transport_of_the_react_chat_works_with_the_ai_sdk(tmp_path: Path) -> None:
    modules = npm_or_skip(AI_SDK, "compatibility with the AI SDK")
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "node_modules").symlink_to(modules)
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(EXAMPLES / "react-chat/src/transport.js", folder)
    shutil.copy(NODE / "react_chat.mjs", folder)
    with our_server(tmp_path) as server:
        done = subprocess.run(
            ["node", "react_chat.mjs", server.url],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"answered": "output-available", "status": 204, "messages": 4}
