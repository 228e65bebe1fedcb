"""How the suites of the stores get at theirs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest

from sandbox_agent.persist.store import SessionStore

__all__ = ["MeasuredStore", "Opener", "StoreSuite"]


class MeasuredStore(SessionStore, Protocol):
    """A store that says how much of ``--retain-bytes`` it uses, as all here do."""

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares."""
        ...


Opener = Callable[[], AbstractAsyncContextManager[MeasuredStore]]


class StoreSuite:
    """The fixtures that the promises are tested with."""

    @pytest.fixture
    def opener(self) -> Opener:
        """How the store is opened."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self, opener: Opener) -> AsyncGenerator[MeasuredStore]:
        """The store, open."""
        async with opener() as store:
            yield store
