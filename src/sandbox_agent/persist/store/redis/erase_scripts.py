"""The scripts that erase; the keys are told in ``scripts``.

They begin by deleting nothing: a server that has no memory left refuses what might need some, but not what
comes behind a deletion in one script. So there is always a way to make room.
"""

from __future__ import annotations

from typing import Final

from sandbox_agent.persist.store.redis.scripts import PRELUDE, READ

__all__ = ["AGED", "END", "HIDE", "OLDEST", "TEXTS", "TRIM", "UNINDEX", "USED"]

_BEGIN: Final = (
    PRELUDE
    + """
call('DEL', P..'nothing')
call('HSET', P..'fence', 'n', ARGV[2])
"""
)

# ARGV[3]: K. Says whether there was a session.
HIDE: Final = (
    _BEGIN
    + """
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
"""
)

# ARGV[3]: K, whose texts are erased by now. Streams are freed beside the server's work.
END: Final = (
    _BEGIN
    + """
local key = ARGV[3]
local place = P..'s:'..key
if call('HEXISTS', place, 'del') == 0 then return {'ok', 0} end
call('HINCRBY', P..'meta', 'bytes', 0 - tonumber(call('HGET', place, 'b') or 0))
call('UNLINK', P..'e:'..key, P..'v:'..key, P..'ts:'..key, P..'ws:'..key, place)
call('SREM', P..'deleted', key)
return {'ok', 1}
"""
)

# ARGV: K, last sequence, how many, bytes. Per text: its number, its size (-1: there is none).
TEXTS: Final = (
    READ
    + """
local total = 0
local ids = call('ZRANGEBYSCORE', P..'ts:'..ARGV[1], '-inf', ARGV[2], 'LIMIT', 0, ARGV[3])
for i, id in ipairs(ids) do
  local value = call('HGET', P..'d:'..math.floor(id / 512), id % 512)
  total = total + (value and #value or 0)
  if i > 1 and total > tonumber(ARGV[4]) then break end
  numbers[#numbers + 1] = tonumber(id)
  put(value)
end
return answer()
"""
)

# ARGV[3]: K; ARGV[4]: list of {word key ("wa": the session's agent's), block, places}; then list of
# {text number, size}: those are done.
UNINDEX: Final = (
    _BEGIN
    + """
local key, work = ARGV[3], cmsgpack.unpack(ARGV[4])
local agent = 'wa:'..(call('HGET', P..'s:'..key, 'agent') or '')
for _, item in ipairs(work[1]) do
  local place, block, places = P..(item[1] == 'wa' and agent or item[1]), item[2], {}
  for _, one in ipairs(item[3]) do places[one] = true end
  local posted = call('HGET', place, block)
  if posted then
    local kept, bytes, from = {}, {string.byte(posted, 1, -1)}, 1
    for i = 1, #bytes, 2 do
      if places[bytes[i] * 2 + math.floor(bytes[i + 1] / 128)] then
        if i > from then kept[#kept + 1] = string.sub(posted, from, i - 1) end
        from = i + 2
      end
    end
    if from <= #posted then kept[#kept + 1] = string.sub(posted, from) end
    if #kept == 0 then call('HDEL', place, block)
    elseif from > 1 then call('HSET', place, block, table.concat(kept)) end
  end
end
local newest, bytes = math.floor(tonumber(call('HGET', P..'meta', 'text') or 0) / 512), 0
for _, item in ipairs(work[2]) do
  local id = item[1]
  local block, place = math.floor(id / 512), id % 512
  if call('ZREM', P..'ts:'..key, id) == 1 then bytes = bytes + 2 * item[2] end
  call('HDEL', P..'d:'..block, place)
  if block < newest and call('EXISTS', P..'d:'..block) == 0 then
    call('DEL', P..'m:'..block)
    call('HDEL', P..'range', block)
  else
    call('SETRANGE', P..'m:'..block, place * 16, string.rep('\\0', 16))
  end
end
if bytes > 0 then
  call('HINCRBY', P..'s:'..key, 'b', 0 - bytes)
  call('HINCRBY', P..'meta', 'bytes', 0 - bytes)
end
return {'ok'}
"""
)

# ARGV: K, "e" or "v", time before which (or ""), how many, bytes. Says the last number of the oldest rows
# that are meant, how many those are, and their bytes; nothing where there are none.
OLDEST: Final = """
local place, before, limit = KEYS[1]..ARGV[2]..':'..ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local room, from, rows, total, bytes, last = tonumber(ARGV[5]), '-', 0, 0, 0, nil
while rows < limit do
  local chunk = redis.call('XRANGE', place, from, '+', 'COUNT', 32)
  for _, entry in ipairs(chunk) do
    local value = entry[2][2]
    local number = tonumber(string.sub(entry[1], 1, -3))
    local size = #value - string.find(value, '\\n', 1, true)
    local late = before and tonumber(string.match(value, '^%[(%-?%d+)')) >= before
    if late or (last and total + size > room) or rows >= limit then
      return last and {last, rows, bytes} or {}
    end
    last, rows, total, bytes = number, rows + 1, total + size, bytes + #value + 16
    from = (number + 1)..'-0'
  end
  if #chunk < 32 then break end
end
return last and {last, rows, bytes} or {}
"""

# ARGV[3]: K, "e" or "v", last number, bytes. A session's first sequence moves on, and what was said in
# turns and answers before it is erased.
TRIM: Final = (
    _BEGIN
    + """
local key, kind, last, bytes = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local place, stream = P..'s:'..key, P..kind..':'..key
if call('HEXISTS', place, 'del') == 1 then return {'ok'} end
call('XTRIM', stream, 'MINID', '=', (last + 1)..'-0')
call('HSET', place, kind..'t', last)
call('HINCRBY', place, 'b', 0 - bytes)
call('HINCRBY', P..'meta', 'bytes', 0 - bytes)
local row = call('HMGET', place, 'row', 'l')
if not row[1] then return {'ok'} end
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
return {'ok'}
"""
)

# ARGV: "page" and the key behind which, and how many; or "one" and K. Says the last key that was looked at
# (-1: that was all), then for each that may lose rows its key and the time of its oldest, as text.
AGED: Final = """
local P = KEYS[1]
local call = redis.call
local keys, last = {ARGV[2]}, '-1'
if ARGV[1] == 'page' then
  keys = call('ZRANGEBYSCORE', P..'list', '('..ARGV[2], '+inf', 'LIMIT', 0, ARGV[3])
  if #keys == tonumber(ARGV[3]) then last = keys[#keys] end
  if tonumber(ARGV[2]) < 0 then table.insert(keys, 1, '0') end
end
local found = {last}
for _, key in ipairs(keys) do
  if call('EXISTS', P..'to:'..key) == 0 and call('HEXISTS', P..'s:'..key, 'del') == 0 then
    local oldest, time
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
"""

USED: Final = "return tonumber(redis.call('HGET', KEYS[1]..'meta', 'bytes') or 0)"
