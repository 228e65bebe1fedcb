"""A mirror of sessions in Redis or Valkey: a list a session (seed 000)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sandbox_agent.client.sinks.base import ClosedSink
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.client import RedisClient, RedisLink, Word
from sandbox_agent.persist.redis.scripts import Script
from sandbox_agent.wire.universal import UniversalEvent, encode_event

__all__ = ["RedisSink"]

_PLACEHOLDER: Final = "{session_id}"

# KEYS: the list. ARGV: the first sequence, then the events' JSON. What is there already is compared, what is
# missing is pushed, in one step: a retry doubles nothing, and two mirrors do no harm.
# Answers {'ok'}, {'gap', the last sequence} or {'other', a sequence}.
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


class RedisSink(ClosedSink):
    """Keeps mirrored events in lists: event ``sequence`` is at ``LINDEX key sequence-1``, as JSON.

    Events that are there already are not stored again, so two mirrors of one session do no harm. A list
    has no holes: events behind a gap are refused. How durable it is, the server's settings say.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``.
        client: a client of ``redis.asyncio`` in its place; never closed here.
        key: the lists' keys; ``{session_id}`` in it is replaced.
        timeout: how long a call may take, in seconds.

    Raises:
        ImportError: the package redis is not installed.
        ValueError: both or none of url and client, or a key without ``{session_id}``.
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
            raise ValueError("the key must have {session_id} in it: each session has a list of its own")
        self._key = key
        self._link = RedisLink(url, client, timeout=timeout)

    async def last_sequence(self, session_id: str, /) -> int:
        """Return the highest stored sequence of a session; 0 where there is none.

        Raises:
            PersistError: the server can't be reached, or refused.
        """
        length: int = await self._link.call("LLEN", self._key_of(session_id), session_id=session_id)
        return length

    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        """Store events in one step, all of them or none.

        Raises:
            PersistError: an event between those stored and these is missing; another event is stored
                under the sequence of one of them; or the server can't be reached, or refused.
        """
        if not events:
            return
        first = events[0].sequence
        words: list[Word] = [first]
        for position, event in enumerate(events):
            if event.sequence != first + position:
                raise _gap(session_id, event.sequence, first + position)
            words.append(encode_event(event))
        key = self._key_of(session_id)
        answer = await self._link.run(_PUSH, [key], words, session_id=session_id, write=True)
        if answer[0] == b"gap":
            raise _gap(session_id, first, int(answer[1]) + 1)
        if answer[0] == b"other":
            raise PersistError(
                f"session '{session_id}': another event {answer[1]} is stored (the session was deleted and "
                "made anew, or is another server's): mirror it into another list",
                session_id=session_id,
            )

    async def close(self) -> None:
        """Close the client if it was opened here. Safe to call twice."""
        await self._link.close()

    def _key_of(self, session_id: str) -> str:
        return self._key.replace(_PLACEHOLDER, session_id)


def _gap(session_id: str, came: int, missing: int) -> PersistError:
    return PersistError(
        f"session '{session_id}': event {came} came, {missing} is missing, nothing was stored",
        session_id=session_id,
    )
