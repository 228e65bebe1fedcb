"""Erase sessions and old rows in slices. Each slice is a short script, so commits run between them.

The scripts delete nothing first: a server whose memory is full refuses a script that might need some, but
not one that has begun with a deletion. So there is always a way to make room.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from sandbox_agent.persist.redis.ledger_scripts import WHOLE, write_script
from sandbox_agent.persist.redis.owner import Owner
from sandbox_agent.persist.redis.scripts import Script

# A slice has at most so many rows, and so many bytes unless it is one row.
_SLICE_ROWS: Final = 1_000
_SLICE_BYTES: Final = 2 * 1024 * 1024
SLICE_TEXTS = 500
_SLICE_KEYS: Final = 1_000
_SESSIONS_PAGE: Final = 250

_BEGIN: Final = """
call('DEL', P..'nothing')
call('HSET', P..'fence', 'n', ARGV[2])
"""


def _script(body: str) -> Script:
    return write_script(_BEGIN + body)


# Atomic: removes a session from all lists, and its small rows. ARGV[3]: K. Answers 1 if there was a session.
HIDE: Final = _script("""
local key = ARGV[3]
local place = P..'s:'..key
local row = call('HMGET', place, 'name', 'agent', 'native', 'row')
if not row[4] then return {'ok', call('HEXISTS', place, 'del')} end
call('ZREM', P..'list', key)
if call('HGET', P..'names', row[1]) == key then call('HDEL', P..'names', row[1]) end
if row[3] then call('ZREM', P..'n:'..#row[2]..':'..row[2]..row[3], key) end
call('HDEL', place, 'row', 'name', 'native')
call('SREM', P..'open', key)
for _, member in ipairs(call('HVALS', P..'qm:'..key)) do call('ZREM', P..'pending', member) end
for _, kind in ipairs({'x', 't', 'tp', 'tn', 'tb', 'ti', 'to', 'q', 'qd', 'qm', 'qb'}) do
  call('UNLINK', P..kind..':'..key)
end
call('HSET', place, 'del', 1)
call('SADD', P..'deleted', key)
return {'ok', 1}
""")

# Atomic: removes the rest of a hidden session whose texts are erased. The server frees streams in the
# background. ARGV[3]: K.
END: Final = _script("""
local key = ARGV[3]
local place = P..'s:'..key
if call('HEXISTS', place, 'del') == 0 then return {'ok', 0} end
call('HINCRBY', P..'meta', 'bytes', 0 - tonumber(call('HGET', place, 'b') or 0))
call('UNLINK', P..'e:'..key, P..'v:'..key, P..'r:'..key, P..'rc:'..key, P..'ts:'..key, P..'ws:'..key, place)
call('SREM', P..'deleted', key)
return {'ok', 1}
""")

_TEXTS: Final = """
local function subtract_bytes(key, bytes)
  call('HINCRBY', P..'s:'..key, 'b', 0 - bytes)
  call('HINCRBY', P..'meta', 'bytes', 0 - bytes)
end
local function erase_texts(key, last, limit)
  local ids, bytes = call('ZRANGEBYSCORE', P..'ts:'..key, '-inf', last, 'LIMIT', 0, limit), 0
  for _, id in ipairs(ids) do
    local block, place = P..'d:'..math.floor(id / 512), id % 512
    bytes = bytes + 2 * call('HSTRLEN', block, place)
    call('HDEL', block, place)
    call('ZREM', P..'ts:'..key, id)
  end
  if bytes > 0 then subtract_bytes(key, bytes) end
  return #ids
end
"""

# Atomic: erases some texts and counts their bytes. ARGV[3]: K, how many. Answers how many were erased.
ERASE_TEXTS: Final = _script(_TEXTS + "return {'ok', erase_texts(ARGV[3], '+inf', ARGV[4])}")

# Atomic: erases the oldest rows of a stream with their texts, moves the session's first sequence, and erases
# the prompts and details of turns and permissions before it. ARGV[3]: K, "e" or "v", time before which or "",
# how many rows and bytes at most (but one row at least). Answers how many were erased.
ERASE: Final = _script(
    WHOLE
    + _TEXTS
    + """
local key, kind, before = ARGV[3], ARGV[4], tonumber(ARGV[5])
local limit, room = tonumber(ARGV[6]), tonumber(ARGV[7])
local place, stream = P..'s:'..key, P..kind..':'..key
local rows, total, last, references = 0, 0, nil, {}
local function find()
  local from, size = '-', 0
  while true do
    local chunk = call('XRANGE', stream, from, '+', 'COUNT', 32)
    for _, entry in ipairs(chunk) do
      local value = entry[2][2]
      size = size + #value
      if rows >= limit or (rows > 0 and size > room) then return end
      if before and tonumber(string.match(value, '^%[(%-?%d+)')) >= before then return end
      last, rows, total = tonumber(string.sub(entry[1], 1, -3)), rows + 1, total + #value + 16
      local name = kind == 'v' and reference(value)
      if name then references[name] = (references[name] or 0) + 1 end
    end
    if #chunk < 32 then return end
    from = (last + 1)..'-0'
  end
end
if not hidden(key) then find() end
if rows == 0 then return {'ok', 0} end
if kind == 'e' then erase_texts(key, last, -1) end
call('XTRIM', stream, 'MINID', '=', (last + 1)..'-0')
call('HSET', place, kind..'t', last)
for name, count in pairs(references) do
  local size = call('HSTRLEN', P..'r:'..key, name)
  if size > 0 and call('HINCRBY', P..'rc:'..key, name, 0 - count) < 1 then
    call('HDEL', P..'r:'..key, name)
    call('HDEL', P..'rc:'..key, name)
    total = total + size
  end
end
subtract_bytes(key, total)
local row = call('HMGET', place, 'row', 'l')
if not row[1] then return {'ok', rows} end
local oldest = call('XRANGE', P..'e:'..key, '-', '+', 'COUNT', 1)[1]
local first = tonumber(row[2]) + 1
if oldest then first = tonumber(string.sub(oldest[1], 1, -3)) end
call('HSET', place, 'f', first)
for list, kept in pairs({tb = 'tp', qb = 'qd'}) do
  for _, id in ipairs(call('ZRANGEBYSCORE', P..list..':'..key, '-inf', '('..first)) do
    call('HDEL', P..kept..':'..key, id)
    call('ZREM', P..list..':'..key, id)
  end
end
return {'ok', rows}
"""
)

# ARGV: "page", the key before and how many; or "one" and K. Answers the last key that was looked at (-1: that
# was the end), then for each session that may lose rows its key and the time of its oldest row, as text.
AGED: Final = Script("""
local P = KEYS[1]
local call = redis.call
local keys, last = {ARGV[2]}, '-1'
if ARGV[1] == 'page' then
  keys = call('ZRANGEBYSCORE', P..'list', '('..ARGV[2], '+inf', 'LIMIT', 0, ARGV[3])
  if #keys == tonumber(ARGV[3]) then last = keys[#keys] end
end
local found = {last}
for _, key in ipairs(keys) do
  if call('EXISTS', P..'to:'..key) == 0 and call('HEXISTS', P..'s:'..key, 'del') == 0 then
    local oldest
    for _, kind in ipairs({'e', 'v'}) do
      local entry = call('XRANGE', P..kind..':'..key, '-', '+', 'COUNT', 1)[1]
      local at = entry and string.match(entry[2][2], '^%[(%-?%d+)')
      if at and (not oldest or tonumber(at) < tonumber(oldest)) then oldest = at end
    end
    if oldest then
      found[#found + 1] = key
      found[#found + 1] = oldest
    end
  end
end
return found
""")

# Atomic: one step of the removal of keys that only earlier releases used: their full-text index, and at the
# end the envelopes of no session. While ``range`` exists, the removal has not finished.
# ARGV[3]: the cursor of SCAN, how many keys of the database it scans. Answers the next cursor, 0 at the end.
SWEEP: Final = _script("""
local pattern = string.gsub(P, '[%*%?%[%]%^\\\\]', '\\\\%0')..'*'
local found = call('SCAN', ARGV[3], 'MATCH', pattern, 'COUNT', ARGV[4])
for _, key in ipairs(found[2]) do
  local kind = string.match(string.sub(key, #P + 1), '^(%a+):')
  if kind == 'w' or kind == 'ws' or kind == 'wa' or kind == 'm' then call('UNLINK', key) end
end
if found[1] == '0' then
  call('HINCRBY', P..'meta', 'bytes', 0 - tonumber(call('HGET', P..'s:0', 'b') or 0))
  call('UNLINK', P..'v:0', P..'s:0', P..'range')
end
return {'ok', found[1]}
""")


class Eraser:
    """Erases rows of an owner's namespace."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    async def used_bytes(self) -> int:
        """Return about how many bytes the rows that can expire take, and the texts."""
        return int(await self._owner.call("HGET", "meta", "bytes") or 0)

    async def hide(self, key: int) -> bool:
        """Make the session invisible, and erase all but its many rows; True if there was a session."""
        answer = await self._owner.write(HIDE, key)
        return answer is None or bool(answer[0])

    async def delete(self, key: int) -> None:
        """Erase a hidden session."""
        await self._erase_texts(key)
        await self._owner.write(END, key)

    async def finish_deletes(self) -> None:
        """Erase the hidden sessions whose deletion has not finished."""
        for key in await self._owner.call("SMEMBERS", "deleted"):
            await self.delete(int(key))

    async def sweep(self) -> None:
        """Remove the keys that only earlier releases used."""
        if not (await self._owner.call("EXISTS", "range") or await self._owner.call("EXISTS", "v:0")):
            return
        cursor = b"0"
        while True:
            answer = await self._owner.write(SWEEP, cursor, _SLICE_KEYS)
            if answer is not None:  # Its answer was lost: the same step again removes nothing else.
                (cursor,) = answer
                if cursor == b"0":
                    return

    async def expire(self, before: int) -> list[int]:
        """Erase older rows, and return the sessions that lost some, oldest first."""
        affected: list[int] = []
        for oldest, key in await self._all_aged():
            if oldest < before and await self._erase_slice(key, before, _SLICE_BYTES):
                affected.append(key)
                while await self._erase_slice(key, before, _SLICE_BYTES):
                    pass
        return affected

    async def shrink(self, max_bytes: int) -> list[int]:
        """Erase the oldest rows until no more bytes are used, and return the sessions that lost some."""
        affected: dict[int, None] = {}
        sessions = await self._all_aged()
        heapify(sessions)
        while sessions:
            excess = await self.used_bytes() - max_bytes
            if excess <= 0:
                break
            _, key = heappop(sessions)
            if await self._erase_slice(key, None, min(excess, _SLICE_BYTES)):
                affected[key] = None
            for oldest in (await self._aged("one", key))[1]:
                heappush(sessions, oldest)
        return list(affected)

    async def _all_aged(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        last = 0
        while last >= 0:
            last, page = await self._aged("page", last, _SESSIONS_PAGE)
            found += page
        return sorted(found)

    async def _aged(self, *words: str | int) -> tuple[int, list[tuple[int, int]]]:
        """Return the last key that was looked at, and (oldest time, key) of sessions that may lose rows."""
        answer: Sequence[bytes] = await self._owner.read(AGED, *words)
        last, *found = (int(number) for number in answer)
        return last, list(zip(found[1::2], found[::2], strict=True))

    async def _erase_slice(self, key: int, before: int | None, max_bytes: int) -> bool:
        """Erase some of a session's oldest events and their texts, or envelopes; False if there are none."""
        limits = ("" if before is None else before, _SLICE_ROWS, min(max_bytes, _SLICE_BYTES))
        for kind in ("e", "v"):
            answer = await self._owner.write(ERASE, key, kind, *limits)
            if answer is None or answer[0]:
                return True
        # Texts whose events were never stored.
        return before is None and await self._erase_texts(key)

    async def _erase_texts(self, key: int) -> bool:
        """Erase all texts of a session; True if there were any."""
        erased = False
        while True:
            answer = await self._owner.write(ERASE_TEXTS, key, SLICE_TEXTS)
            if answer is not None and not answer[0]:
                return erased
            erased = True
