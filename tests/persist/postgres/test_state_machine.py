"""The PostgreSQL driver against a plain model, through any sequence of calls, with crashes in between."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings

from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.testing.driver_machine import DriverMachine
from tests.support.effort import repeats
from tests.support.postgres import PostgresServer


class PostgresMachine(DriverMachine):
    """Each run has a schema of its own."""

    dsn: ClassVar[str]

    def __init__(self) -> None:
        self.schema = f"s{secrets.token_hex(6)}"
        super().__init__()

    def make_driver(self) -> SessionPersistDriver:
        return PostgresSessionPersistDriver(self.dsn, schema=self.schema)


@pytest.fixture(scope="module", autouse=True)
def _database(postgres: PostgresServer) -> Iterator[None]:
    PostgresMachine.dsn = postgres.create_database()
    yield
    postgres.drop_database(PostgresMachine.dsn)


TestPostgresMachine = pytest.mark.loops(PostgresMachine.TestCase)
TestPostgresMachine.settings = settings(
    max_examples=repeats(4, 10),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
