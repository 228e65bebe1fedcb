"""Make the golden file of this version: ``python -m tests.persist.store.make_golden``."""

from __future__ import annotations

import asyncio

from sandbox_agent.persist.sqlite.schema import STORE_VERSION
from tests.persist.store.making import opened
from tests.persist.store.test_schema import GOLDEN, golden_changes


async def main() -> None:
    path = GOLDEN / f"version_{STORE_VERSION}.db"
    path.unlink(missing_ok=True)
    async with opened(path) as store:
        await store.commit(golden_changes())


if __name__ == "__main__":
    asyncio.run(main())
