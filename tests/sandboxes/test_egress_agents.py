"""Claude Code and Codex in a jail whose only way out is the proxy: a turn against the scripted model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sandbox_agent import AgentMessageChunk, Mount, SandboxAgent, jail
from sandbox_agent.testing.agents.profile import profile_of
from sandbox_agent.testing.llm import ScriptedLLM
from tests.real_agent.test_matrix import SECONDS, install
from tests.support.npm import NpmMissingError, node_wheel
from tests.support.tls import make_certificate, tls_in_front

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.sandboxes,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="EGRESS NOT TESTED: bwrap is not on PATH"),
]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("agent", ["claude", "codex"])
async def test_a_real_agent_completes_a_turn_through_the_proxy(
    agent: str, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        data = install(agent)
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: {agent} in a jail with allowed hosts ({error})")
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    profile = profile_of(agent)
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    authority, certificate = make_certificate("llm.test", tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    async with (
        ScriptedLLM() as llm,
        tls_in_front(urlsplit(llm.url).port or 0, certificate) as port,
    ):
        # By a name: programs connect to loopback addresses without a proxy, and would find the jail's own.
        url = f"https://llm.test:{port}"
        profile.write_files(url, home)
        mounts = [Mount(path, f"/home/agent/{path.name}", writable=True) for path in home.iterdir()]
        trust = dict.fromkeys(
            ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "CODEX_CA_CERTIFICATE"), "/authority.pem"
        )
        provider = jail(
            allow_hosts=[f"llm.test:{port}=127.0.0.1"],
            mounts=[Mount(authority, "/authority.pem"), Mount(node_wheel(), str(node_wheel())), *mounts],
            env={**profile.variables(url, Path("/home/agent")), **trust},
            log=tmp_path / "log",
        )
        async with SandboxAgent.start(sandbox=provider) as sdk:
            try:
                session = await sdk.create_session(agent=agent, permission_policy="allow_once")
                said = ""
                turn = session.stream("[[say Through the proxy.]]")
                async for event in turn:
                    if isinstance(event.update, AgentMessageChunk):
                        said += event.update.text
                assert turn.response.stop_reason == "end_turn"
                assert "Through the proxy." in said
                assert llm.requests
            finally:
                await sdk.destroy_sandbox()
