"""The table of what drivers can do is that of the classes."""

from __future__ import annotations

import re

import pytest

import sandbox_agent
from sandbox_agent.persist.base import Capability
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from tests.docs.pages import text_of

# Every driver that has a public name, in the order of the page.
DRIVERS = (
    "InMemorySessionPersistDriver",
    "SQLiteSessionPersistDriver",
    "PostgresSessionPersistDriver",
    "RedisSessionPersistDriver",
    "RivetSessionPersistDriver",
    "StateSessionPersistDriver",
    "EncryptedSessionPersistDriver",
)
PAGE = text_of("docs/persistence.md")
HEADS = re.findall(r"^\| driver \|((?: [A-Z_]+ \|)+)$", PAGE, flags=re.MULTILINE)
ROWS: dict[str, str] = dict(
    re.findall(r"^\| `(\w+)` \|((?: (?:yes|inner|-) \|)+)$", PAGE, flags=re.MULTILINE)
)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_names_every_driver_and_every_capability() -> None:
    (head,) = HEADS
    assert cells(head) == [capability.name for capability in Capability]
    assert tuple(ROWS) == DRIVERS
    public = {name for name in sandbox_agent.__all__ if name.endswith("SessionPersistDriver")}
    assert {*DRIVERS} == public - {"SessionPersistDriver"}
    for name in DRIVERS:
        assert f"| `{name}(" in PAGE


@pytest.mark.parametrize("name", DRIVERS)
def test_a_row_says_what_the_class_declares(name: str) -> None:
    said = dict(zip(Capability, cells(ROWS[name]), strict=True))
    if name == "EncryptedSessionPersistDriver":
        inner = InMemorySessionPersistDriver()
        assert inner.capabilities == set(Capability)
        declared = EncryptedSessionPersistDriver(inner, key=bytes(32)).capabilities
        assert {one for one in Capability if said[one] == "inner"} == declared
    else:
        kind = getattr(sandbox_agent, name)
        assert {one for one in Capability if said[one] == "yes"} == kind.capabilities
