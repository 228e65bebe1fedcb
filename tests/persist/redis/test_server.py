"""The servers that the tests run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.redis import RedisKind, RedisServer, call


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_a_durable_server_holds_what_it_acknowledged_when_it_is_killed(
    kind: RedisKind, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, kind=kind, durable=True) as server:
        server.call("SET", "key", "value")
        server.restart()
        assert server.call("GET", "key") == b"value"


def test_a_test_gets_a_database_that_is_empty(redis_url: str) -> None:
    assert call(redis_url, "DBSIZE") == 0
