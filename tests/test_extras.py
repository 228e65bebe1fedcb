"""Features whose extra is not installed fail where they are constructed, in the same words."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

import sandbox_agent
from sandbox_agent.extras import MissingExtraError

CASES: list[tuple[str, tuple[str, ...], Callable[[], object]]] = [
    ("postgres", ("asyncpg",), lambda: sandbox_agent.PostgresSessionPersistDriver("postgres://h/d")),
    ("postgres", ("asyncpg",), lambda: sandbox_agent.PostgresSink("postgres://h/d")),
    (
        "postgres",
        ("asyncpg",),
        lambda: sandbox_agent.SandboxAgent(base_url="http://h", persist="postgres://h"),
    ),
    ("redis", ("redis",), lambda: sandbox_agent.RedisSessionPersistDriver("redis://h")),
    ("redis", ("redis",), lambda: sandbox_agent.RedisSink("redis://h")),
    (
        "encryption",
        ("cryptography",),
        lambda: sandbox_agent.EncryptedSessionPersistDriver(
            sandbox_agent.InMemorySessionPersistDriver(), key=b"k" * 32
        ),
    ),
    ("server", ("starlette", "uvicorn"), lambda: sandbox_agent.local()),
    ("e2b", ("e2b",), lambda: sandbox_agent.e2b()),
    ("daytona", ("daytona",), lambda: sandbox_agent.daytona()),
    ("modal", ("modal",), lambda: sandbox_agent.modal()),
]


@pytest.mark.parametrize(("extra", "modules", "make"), CASES)
def test_what_needs_an_extra_names_it_when_it_is_constructed(
    extra: str, modules: tuple[str, ...], make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as info:
        make()
    expected = f"needs the extra '{extra}': install it with pip install \"sandbox-agent-py[{extra}]\""
    assert str(info.value).endswith(expected)
