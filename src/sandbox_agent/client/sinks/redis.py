"""A sink that mirrors sessions into Redis or Valkey: one list per session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sandbox_agent.client.sinks import ClosableSink, gap_error, other_event_error
from sandbox_agent.persist.redis.client import Argument, BoundedClient, RedisClient
from sandbox_agent.persist.redis.scripts import Script
from sandbox_agent.wire.universal import UniversalEvent, encode_event

__all__ = ["RedisSink"]

_PLACEHOLDER: Final = "{session_id}"

# KEYS: the list. ARGV: the first sequence, then the events' JSON. Stored events are compared, missing ones
# are pushed, in one step: retries and two mirrors of one session store nothing twice.
# Returns {'ok'}, {'gap', the last sequence} or {'other', a sequence}.
_PUSH: Final = Script(
    """
local length, first, count = redis.call('LLEN', KEYS[1]), tonumber(ARGV[1]), #ARGV - 1
if first > length + 1 then return {'gap', length} end
local function same(one, other)
  if one == other then return true end
  -- Written by another program, or with the raw envelope.
  local read, a = pcall(cjson.decode, one)
  local read_too, b = pcall(cjson.decode, other)
  return read and read_too and type(a) == 'table' and type(b) == 'table'
    and a.event_id == b.event_id and a.time == b.time and a.type == b.type
end
for i = 0, math.min(length - first, count - 1) do
  if not same(redis.call('LINDEX', KEYS[1], first + i - 1), ARGV[i + 2]) then return {'other', first + i} end
end
local fresh = {}
for i = math.max(length - first + 1, 0), count - 1 do
  fresh[#fresh + 1] = ARGV[i + 2]
  if #fresh == 1000 then redis.call('RPUSH', KEYS[1], unpack(fresh)); fresh = {} end
end
if #fresh > 0 then redis.call('RPUSH', KEYS[1], unpack(fresh)) end
return {'ok'}
"""
)


class RedisSink(ClosableSink):
    """Stores mirrored events in lists: event ``sequence`` is at ``LINDEX key sequence-1``, as JSON.

    Events that are already stored are skipped, so two mirrors of one session are safe. A list has no gaps:
    events after a gap are refused. Durability depends on the server's settings.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``.
        client: a client of ``redis.asyncio`` to use instead; it is never closed.
        key: the key of a list; ``{session_id}`` in it is replaced.
        timeout: the timeout of a call, in seconds.

    Raises:
        ImportError: the package redis is not installed.
        ValueError: both or neither of url and client, or a key without ``{session_id}``.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: RedisClient | None = None,
        key: str = f"session:{_PLACEHOLDER}",
        timeout: float = 10.0,
    ) -> None:
        if _PLACEHOLDER not in key:
            raise ValueError("key must contain {session_id}: each session has its own list")
        self._key = key
        self._client = BoundedClient(url, client, timeout=timeout)

    async def last_sequence(self, session_id: str, /) -> int:
        length: int = await self._client.call("LLEN", self._key_of(session_id), session_id=session_id)
        return length

    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        if not events:
            return
        first = events[0].sequence
        words: list[Argument] = [first]
        for position, event in enumerate(events):
            if event.sequence != first + position:
                raise gap_error(session_id, event.sequence, first + position)
            words.append(encode_event(event))
        key = self._key_of(session_id)
        answer = await self._client.run(_PUSH, [key], words, session_id=session_id, write=True)
        if answer[0] == b"gap":
            raise gap_error(session_id, first, int(answer[1]) + 1)
        if answer[0] == b"other":
            raise other_event_error(session_id, answer[1], "list")

    async def close(self) -> None:
        await self._client.close()

    def _key_of(self, session_id: str) -> str:
        return self._key.replace(_PLACEHOLDER, session_id)
