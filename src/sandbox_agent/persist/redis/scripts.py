"""Lua scripts of the driver. The server runs each as one atomic step."""

from __future__ import annotations

import hashlib
from typing import Final


class Script:
    """A Lua script, and the hash by which the server finds it once it has run."""

    def __init__(self, source: str) -> None:
        self.source: str = source
        self.sha: str = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


# The keys of a session come in this order: events, ids, meta, record, order, side.
# check: refuses a fenced writer, and a writer that knows a longer history than the server has. If there is no
#   stored generation or life although the writer knows one, the server has lost the session. Generation 0 is
#   an unfenced writer.
# begin_life: gives a history its life if it has none. A deleted session leaves only its generation, which
#   expires.
_COMMON: Final = """
local function number(value) return tonumber(value or 0) or 0 end
local function now() local t = redis.call('TIME'); return t[1] * 1000 + math.floor(t[2] / 1000) end
local function check(meta, generation, life, known)
  local had = redis.call('HMGET', meta, 'generation', 'life', 'last')
  local stored = number(had[1])
  if generation > 0 then
    if not had[1] then return {'lost'} end
    if generation < stored then return {'fenced'} end
    if generation > stored then redis.call('HSET', meta, 'generation', string.format('%.0f', generation)) end
  end
  if life ~= '' then
    if not had[1] and not had[2] then return {'lost'} end
    if had[2] == life and number(had[3]) < known then return {'lost'} end
  end
  return nil, had[2], number(had[3])
end
local function begin_life(meta, life)
  if life then return life end
  local t = redis.call('TIME')
  life = t[1] .. '.' .. t[2]
  redis.call('HSET', meta, 'life', life)
  redis.call('PERSIST', meta)
  return life
end
local function refresh(ttl, first, last)
  if ttl > 0 then
    for i = first, last do redis.call('PEXPIRE', KEYS[i], ttl) end
  end
end
local function at(index) return string.format('%.0f', index) end
"""


def _script(body: str) -> Script:
    return Script(_COMMON + body)


# Atomic: allocates indexes for the events of each session and stores them; an event whose id is stored keeps
# its index. KEYS: the six (or, without a ttl, the first three) of each session. ARGV: ttl, keys per session;
#   for each session: generation, life, known, count, after, head, then count times id, created_at,
#   connection_id, sender, payload. If after is not -1, it must be the last index, all events must be new, and
#   the head is stored with them.
# Answers for each session {'ok', life, first} if all are new, {'ok', life, -1, index, ...}, {'fenced'},
#   {'lost'}, {'other', life, -1, index, ...} or {'error', text}.
APPEND: Final = _script("""
local ttl, width = tonumber(ARGV[1]), tonumber(ARGV[2])
local function append(k, a)
  local events, ids, meta = KEYS[k], KEYS[k + 1], KEYS[k + 2]
  local count, after = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  local refused, life, last = check(meta, tonumber(ARGV[a]), ARGV[a + 1], tonumber(ARGV[a + 2]))
  if refused then return refused end
  if after >= 0 and after ~= last then return {'other', life or '', '-1'} end
  local indexes, fresh, seen, known = {}, {}, {}, 0
  for from = 0, count - 1, 500 do
    local names = {}
    for i = from, math.min(from + 499, count - 1) do names[#names + 1] = ARGV[a + 6 + i * 5] end
    local found = redis.call('HMGET', ids, unpack(names))
    for i, name in ipairs(names) do
      local index = found[i] or seen[name]
      if index then
        known = known + 1
      else
        last = last + 1
        index = at(last)
        seen[name] = index
        fresh[#fresh + 1] = from + i - 1
      end
      indexes[from + i] = index
    end
  end
  if after >= 0 and known > 0 then
    local answer = {'other', life or '', '-1'}
    for i = 1, count do answer[i + 3] = indexes[i] end
    return answer
  end
  life = begin_life(meta, life)
  if #fresh > 0 then
    local pairs_of = {}
    for _, i in ipairs(fresh) do
      local b = a + 6 + i * 5
      redis.call('XADD', events, indexes[i + 1] .. '-0', 'id', ARGV[b], 'created_at', ARGV[b + 1],
        'connection_id', ARGV[b + 2], 'sender', ARGV[b + 3], 'payload', ARGV[b + 4])
      pairs_of[#pairs_of + 1] = ARGV[b]
      pairs_of[#pairs_of + 1] = indexes[i + 1]
      if #pairs_of >= 1000 then redis.call('HSET', ids, unpack(pairs_of)); pairs_of = {} end
    end
    if #pairs_of > 0 then redis.call('HSET', ids, unpack(pairs_of)) end
  end
  -- A retry writes too: WAIT confirms only what a write of this connection comes after.
  if after >= 0 then
    redis.call('HSET', meta, 'last', at(last), 'head', ARGV[a + 5])
  elseif count > 0 then
    redis.call('HSET', meta, 'last', at(last))
  end
  refresh(ttl, k, k + width - 1)
  if known == 0 then return {'ok', life, indexes[1]} end
  local answer = {'ok', life, '-1'}
  for i = 1, count do answer[i + 3] = indexes[i] end
  return answer
end
local answers, k, a = {}, 1, 3
while k <= #KEYS do
  local done, answer = pcall(append, k, a)
  if not done then
    local cause = answer
    if type(answer) == 'table' then cause = answer.err end
    answer = {'error', tostring(cause)}
  end
  answers[#answers + 1] = answer
  a = a + 6 + tonumber(ARGV[a + 3]) * 5
  k = k + width
end
return answers
""")

# Atomic: replaces the head. ARGV: ttl, head.
REPLACE_HEAD: Final = _script("""
redis.call('HSET', KEYS[3], 'head', ARGV[2])
refresh(tonumber(ARGV[1]), 1, #KEYS)
""")

# Atomic: inserts or replaces one event with a given index. An event with the highest index goes into the
# stream, any other into the side table. ARGV: ttl, index, id, created_at, connection_id, sender, payload.
# Answers {'ok', life, last}, or {'taken'} if another event has the index.
INSERT: Final = _script("""
local events, ids, meta, _, order, side = unpack(KEYS)
local function insert(index, event)
  local id = event[1]
  local _, life, last = check(meta, 0, '', 0)
  -- The highest id that the stream ever had: it accepts only higher ones.
  local function highest_id()
    if redis.call('EXISTS', events) == 0 then return 0 end
    local known = redis.call('XINFO', 'STREAM', events)
    for i = 1, #known, 2 do
      if known[i] == 'last-generated-id' then return tonumber(string.match(known[i + 1], '^%d+')) end
    end
  end
  local function last_index()
    local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
    local index = newest and tonumber(string.match(newest[1], '^%d+')) or 0
    local aside = redis.call('ZREVRANGE', order, 0, 0)[1]
    return aside and math.max(index, tonumber(aside)) or index
  end
  local old = redis.call('HGET', ids, id)
  if old == at(index) and redis.call('ZSCORE', order, old) then
    -- It stays where it is.
    redis.call('HSET', side, old, cmsgpack.pack(event))
    return nil, begin_life(meta, life), last
  end
  if old ~= at(index) then
    if redis.call('ZSCORE', order, at(index)) then return {'taken'} end
    if index > 0 and index <= last and #redis.call('XRANGE', events, at(index), at(index)) > 0 then
      return {'taken'}
    end
  end
  life = begin_life(meta, life)
  if old then
    if redis.call('ZREM', order, old) == 1 then
      redis.call('HDEL', side, old)
    else
      redis.call('XDEL', events, old .. '-0')
    end
  end
  if index > highest_id() then
    redis.call('XADD', events, at(index) .. '-0', 'id', id, 'created_at', event[2], 'connection_id', event[3],
      'sender', event[4], 'payload', event[5])
  else
    redis.call('ZADD', order, at(index), at(index))
    redis.call('HSET', side, at(index), cmsgpack.pack(event))
  end
  last = last_index()
  if last < highest_id() then
    -- The last event was moved to the front. The stream would refuse the next indexes, so it is copied.
    local copy, from = events .. ':copy', '-'
    redis.call('DEL', copy)
    while true do
      local entries = redis.call('XRANGE', events, from, '+', 'COUNT', 100)
      if #entries == 0 then break end
      for _, entry in ipairs(entries) do redis.call('XADD', copy, entry[1], unpack(entry[2])) end
      from = at(tonumber(string.match(entries[#entries][1], '^%d+')) + 1)
    end
    redis.call('DEL', events)
    if redis.call('EXISTS', copy) == 1 then redis.call('RENAME', copy, events) end
  end
  redis.call('HSET', ids, id, at(index))
  redis.call('HSET', meta, 'last', at(last))
  return nil, life, last
end
local refused, life, last = insert(tonumber(ARGV[2]), {unpack(ARGV, 3)})
if refused then return refused end
refresh(tonumber(ARGV[1]), 1, #KEYS)
return {'ok', life, at(last)}
""")

# Atomic: allocates a writer generation above all earlier ones. ARGV: ttl. Answers {generation, life, last}.
CLAIM: Final = _script("""
local meta = KEYS[3]
local generation = math.max(number(redis.call('HGET', meta, 'generation')) + 1, now())
local had = redis.call('HMGET', meta, 'life', 'last')
redis.call('HSET', meta, 'generation', at(generation))
local life = begin_life(meta, had[1])
refresh(tonumber(ARGV[1]), 1, #KEYS)
return {at(generation), life, at(number(had[2]))}
""")

# Atomic: checks the writer and replaces the record. ARGV: ttl, generation, life, known, field, value, ...
# Answers {'ok', life} or {'fenced'} or {'lost'}.
SAVE: Final = _script("""
local meta, record = KEYS[3], KEYS[4]
local refused, life = check(meta, tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]))
if refused then return refused end
life = begin_life(meta, life)
redis.call('DEL', record)
redis.call('HSET', record, unpack(ARGV, 5))
refresh(tonumber(ARGV[1]), 1, #KEYS)
return {'ok', life}
""")

# Atomic: removes sessions and leaves for each a tombstone with the next generation. KEYS: the six and end of
# each. ARGV: lifetime of a tombstone in ms. Answers how many keys there were.
DELETE: Final = _script("""
local all = 0
for k = 1, #KEYS, 7 do
  local meta = KEYS[k + 2]
  local generation = redis.call('HGET', meta, 'generation')
  local was = redis.call('UNLINK', unpack(KEYS, k, k + 5))
  if was > 0 then
    redis.call('HSET', meta, 'generation', at(math.max(number(generation) + 1, now())))
    redis.call('PEXPIRE', meta, ARGV[1])
    redis.call('XADD', KEYS[k + 6], 'MAXLEN', 1, '*', 'deleted', '1')
    redis.call('PEXPIRE', KEYS[k + 6], ARGV[1])
  end
  all = all + was
end
return all
""")

# A consistent page of events from the stream and the side table. KEYS: events, order, side.
# ARGV: the first index ('-': the lowest, '+': the highest), limit, 1 for newest first, max bytes (but one
#   event at least). Answers {lengths, texts, cut}: index, id, created_at, connection_id, sender and payload
#   of each event in one text, and their lengths, because the client parses two values much faster than six
#   per event; cut is 1 if the bytes were the limit.
READ: Final = Script("""
local start, count, back, budget = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local streamed, apart = {}, {}
local lengths, texts, bytes, done = {}, {}, 0, 0
local function add(text) lengths[#lengths + 1] = #text; texts[#texts + 1] = text; bytes = bytes + #text end
local from, ended, at = start, false, 1
local function stream_head()
  if at > #streamed and not ended then
    local size = math.min(count - done, 64)
    local low = from
    if not back and low ~= '-' and tonumber(low) and tonumber(low) < 0 then low = '-' end
    if back and low ~= '+' and tonumber(low) < 0 then
      streamed, at, ended = {}, 1, true
      return nil
    end
    streamed = redis.call(back and 'XREVRANGE' or 'XRANGE', KEYS[1], low, back and '-' or '+', 'COUNT', size)
    at = 1
    ended = #streamed < size
    if #streamed > 0 then
      local edge = string.match(streamed[#streamed][1], '^%d+')
      from = string.format('%.0f', tonumber(edge) + (back and -1 or 1))
    end
  end
  return streamed[at]
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  local command, edge = back and 'ZREVRANGEBYSCORE' or 'ZRANGEBYSCORE', back and '-inf' or '+inf'
  local first = tonumber(start) and start or start..'inf'
  apart = redis.call(command, KEYS[2], first, edge, 'LIMIT', 0, count)
end
local beside = 1
while done < count and (done == 0 or bytes < budget) do
  local head, other = stream_head(), apart[beside]
  if not head and not other then break end
  local index = head and string.match(head[1], '^%d+')
  if other and (not head or ((tonumber(other) < tonumber(index)) ~= back)) then
    local event = cmsgpack.unpack(redis.call('HGET', KEYS[3], other))
    add(other)
    for i = 1, 5 do add(event[i]) end
    beside = beside + 1
  else
    add(index)
    local fields = head[2]
    add(fields[2]); add(fields[4]); add(fields[6]); add(fields[8]); add(fields[10])
    at = at + 1
  end
  done = done + 1
end
local cut = done < count and bytes >= budget
return {table.concat(lengths, ','), table.concat(texts), cut and 1 or 0}
""")
