"""A spill in memory, the twin of a store's."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_agent.engine.feed import Chunk

__all__ = ["MemorySpill"]


class MemorySpill:
    """The in-memory twin of a store's spill."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[Chunk]] = {}

    async def write(self, epoch: str, chunks: Sequence[Chunk]) -> None:
        """Keep the chunks."""
        kept = self._chunks.setdefault(epoch, [])
        known = kept[-1].last if kept else 0
        kept.extend(chunk for chunk in chunks if chunk.last > known)

    async def read(self, epoch: str, cursor: int, max_bytes: int) -> list[Chunk]:
        """Return the chunks behind the cursor."""
        found: list[Chunk] = []
        for chunk in self._chunks.get(epoch, []):
            if chunk.last > cursor and sum(len(held.data) for held in found) < max_bytes:
                found.append(chunk)
        return found

    async def drop(self, epoch: str) -> None:
        """Forget a feed."""
        self._chunks.pop(epoch, None)
