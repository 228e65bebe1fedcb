"""Sessions in PostgreSQL: one process begins a session, and another one, anywhere, continues it.

DATABASE_URL=postgresql://user:password@host/database python shared_store.py
"""

from __future__ import annotations

import asyncio
import os

from sandbox_agent import PostgresSessionPersistDriver, SandboxAgent, local


async def begin(url: str) -> str:
    """Begin a session, as a first process does, and return its id."""
    driver = PostgresSessionPersistDriver(url)
    async with SandboxAgent.start(sandbox=local(log="silent"), persist=driver) as sdk:
        session = await sdk.create_session(agent=os.environ.get("AGENT", "mock"))
        print("first process: ", await session.ask("Remember the word orchid."))
        await sdk.destroy_sandbox()
        return session.id


async def resume(url: str, session_id: str) -> None:
    """Continue the session on another server: it is restored with its history."""
    driver = PostgresSessionPersistDriver(url)
    async with SandboxAgent.start(sandbox=local(log="silent"), persist=driver) as sdk:
        session = await sdk.resume_session(session_id)
        print("second process:", await session.ask("Which word?"))
        found = await sdk.get_events(session_id=session_id)
        print(f"the database has {len(found.items)} events of the session")
        await sdk.destroy_sandbox()


async def main() -> None:
    url = os.environ["DATABASE_URL"]
    await resume(url, await begin(url))


if __name__ == "__main__":
    asyncio.run(main())
