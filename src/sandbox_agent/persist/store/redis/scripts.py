"""What the Redis store runs inside the server: each script is one atomic step.

All keys of a namespace begin with ``KEYS[1]``, which has the namespace as its hash tag, so a cluster keeps
them in one place. Behind it, where ``K`` is a session's key:

=================  ======================================================================================
fence              hash: ``gen``, the owner that may write; ``n``, its newest call
lease              the owner, with a time to live
meta               hash: schema ``version``, last session ``key``, ``text``s so far, sum of ``bytes``
names              hash: name -> K
list               sorted set of the keys of the sessions that are in sight
n:AGENT…NATIVE     sorted set of the keys of sessions that the agent knows under that name
deleted            set of the keys whose delete has not ended
s:K                hash: the session's ``row``, its numbers ``f``, ``l``, ``v``, what its streams hold
                   (``en``, ``vn``: newest; ``et``, ``vt``: erased up to; ``b``: bytes), ``del``: hidden
e:K, v:K           streams of events and envelopes, ids ``<sequence>-0`` and ``<index>-0``
x:K                hash: the snapshot
t:K, tp:K          hashes: turn id -> row, and its prompt, which an expiry erases
tn:K, tb:K         sorted sets of turn ids: by number; by last event, of those whose prompts can be erased
ti:K, to:K, open   hash: idempotency key -> turn id; set of open turns; set of the K that have some
q:K, qd:K          hashes: permission id -> row, and what was asked, which an expiry erases
qm:K, qb:K         hash: id -> member of ``pending``; sorted set, of those that can be erased
pending            sorted set of what waits, by when it was asked
=================  ======================================================================================

Search. Texts are numbered from 0 in the order of their commits; 512 of them are a block.

=================  ======================================================================================
d:BLOCK            hash: place in the block -> text
m:BLOCK            per place 16 bytes: time (double), K and sequence (unsigned)
range              hash: BLOCK -> lowest and highest time (doubles)
ts:K               sorted set of a session's text numbers by sequence
w:WORD             hash: BLOCK -> per text that has the word 2 bytes: ``place << 7 | occurrences``
ws:K, wa:AGENT     the same for all texts of a session, and of an agent
=================  ======================================================================================

A script checks first and writes then: it is never undone, so nothing that it writes may fail. Who writes is
the owner that ``fence`` names, and each call has a higher number than the one before: a call that the
network brings late, after its caller gave up and went on, does nothing; nor does one that the client
sent again because its connection broke.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ACQUIRE",
    "COMMIT",
    "EVENTS",
    "NEXT_KEY",
    "OPEN",
    "OPEN_KEYS",
    "PENDING",
    "PERMISSION",
    "PRELUDE",
    "READ",
    "RELEASE",
    "RENEW",
    "ROWS",
    "SCHEMA_VERSION",
    "SESSION_PAGE",
    "SNAPSHOT",
    "TURNS",
]

SCHEMA_VERSION: Final = 1

# Every writing script begins with it: ARGV[1] is the owner, ARGV[2] the number of the call.
PRELUDE: Final = """
local P = KEYS[1]
local call = redis.call
local fence = call('HMGET', P..'fence', 'gen', 'n')
if not fence[1] then return {'emptied'} end
if fence[1] ~= ARGV[1] then return {'fenced'} end
if tonumber(ARGV[2]) < tonumber(fence[2]) then return {'late'} end
if tonumber(ARGV[2]) == tonumber(fence[2]) then return {'done'} end
local is_gone = {}
local function gone(key)
  if is_gone[key] == nil then is_gone[key] = call('HEXISTS', P..'s:'..key, 'del') == 1 end
  return is_gone[key]
end
"""

# ARGV: owner, time to live in ms, schema version. Erasing nothing first lets it work without memory.
ACQUIRE: Final = """
local P = KEYS[1]
local call = redis.call
local version = tonumber(call('HGET', P..'meta', 'version') or 0)
if version > tonumber(ARGV[3]) then return {'newer', version} end
local holder = call('GET', P..'lease')
if holder and holder ~= ARGV[1] then return {'held', call('PTTL', P..'lease')} end
call('DEL', P..'nothing')
call('SET', P..'lease', ARGV[1], 'PX', ARGV[2])
call('HSET', P..'fence', 'gen', ARGV[1], 'n', 0)
if version < tonumber(ARGV[3]) then call('HSET', P..'meta', 'version', ARGV[3]) end
return {'ok'}
"""

RENEW: Final = """
local P = KEYS[1]
local owner = redis.call('HGET', P..'fence', 'gen')
if not owner then return {'emptied'} end
if owner ~= ARGV[1] then return {'fenced'} end
redis.call('DEL', P..'nothing')
redis.call('SET', P..'lease', ARGV[1], 'PX', ARGV[2])
return {'ok'}
"""

RELEASE: Final = """
if redis.call('GET', KEYS[1]..'lease') == ARGV[1] then redis.call('DEL', KEYS[1]..'lease') end
return {'ok'}
"""

NEXT_KEY: Final = (
    PRELUDE
    + """
local newest = call('ZREVRANGE', P..'list', 0, 0)
local key = math.max(tonumber(newest[1] or 0), tonumber(call('HGET', P..'meta', 'key') or 0)) + 1
call('HSET', P..'meta', 'key', key)
call('HSET', P..'fence', 'n', ARGV[2])
return {'ok', key}
"""
)

# ARGV[3] and ARGV[4]: what rows.pack_changes made.
COMMIT: Final = (
    PRELUDE
    + """
local head, blob, at = cmsgpack.unpack(ARGV[3]), ARGV[4], 1
local sessions, streams, turns = head[1], head[2], head[3]
local permissions, snapshots, texts = head[4], head[5], head[6]
local function take(size)
  at = at + size
  return string.sub(blob, at - size, at - 1)
end

-- What is checked; the blob's values are taken meanwhile, in their order.
local named = {}
for _, row in ipairs(sessions) do
  row.value = take(row[2])
  if not gone(row[1]) then
    local other = named[row[3]] or call('HGET', P..'names', row[3])
    if other and tonumber(other) ~= row[1] then return {'taken', 'session', row[3]} end
    named[row[3]] = row[1]
  end
end
for _, stream in ipairs(streams) do
  local kind, key, numbers, sizes, values = stream[1], stream[2], stream[3], stream[4], {}
  for i = 1, #sizes do values[i] = take(sizes[i]) end
  stream.values, stream.first = values, 1
  if not gone(key) then
    local known = call('HMGET', P..'s:'..key, kind..'n', kind..'t')
    local newest, erased = tonumber(known[1] or 0), tonumber(known[2] or 0)
    while stream.first <= #numbers and numbers[stream.first] <= newest do
      local number = numbers[stream.first]
      if number > erased then
        local id = number..'-0'
        local found = call('XRANGE', P..kind..':'..key, id, id)[1]
        if not found or found[2][2] ~= values[stream.first] then return {'other', kind, key, number} end
      end
      stream.first = stream.first + 1
    end
  end
end
for _, row in ipairs(turns) do
  row.value, row.prompt = take(row[7]), take(row[8])
  if row[5] and not gone(row[1]) then
    local name = row[1]..':'..row[5]
    local other = named[name] or call('HGET', P..'ti:'..row[1], row[5])
    if other and other ~= row[2] then return {'taken', 'idempotency key', row[5]} end
    named[name] = row[2]
  end
end
for _, row in ipairs(permissions) do row.value, row.detail = take(row[6]), take(row[7]) end
for _, row in ipairs(snapshots) do row.value = take(row[3]) end
for _, row in ipairs(texts) do row.value = take(row[4]) end

-- From here on it writes. The first is one that a server without memory refuses.
call('HSET', P..'fence', 'n', ARGV[2])
local total = 0
local function count(key, bytes)
  call('HINCRBY', P..'s:'..key, 'b', bytes)
  total = total + bytes
end

for _, row in ipairs(sessions) do
  local key, name, agent, native = row[1], row[3], row[4], row[5]
  if not gone(key) then
    local place = P..'s:'..key
    local old = call('HMGET', place, 'name', 'agent', 'native', 'f', 'l', 'v')
    if old[1] ~= name then
      if old[1] then call('HDEL', P..'names', old[1]) end
      call('HSET', P..'names', name, key)
      call('ZADD', P..'list', key, key)
    end
    if old[2] ~= agent or old[3] ~= native then
      if old[3] then call('ZREM', P..'n:'..#old[2]..':'..old[2]..old[3], key) end
      if native then
        call('ZADD', P..'n:'..#agent..':'..agent..native, key, key)
        call('HSET', place, 'native', native)
      else
        call('HDEL', place, 'native')
      end
    end
    call('HSET', place, 'row', row.value, 'name', name, 'agent', agent,
      'f', math.max(row[6], tonumber(old[4] or row[6])),
      'l', math.max(row[7], tonumber(old[5] or row[7])),
      'v', math.max(row[8], tonumber(old[6] or row[8])))
  end
end

for _, stream in ipairs(streams) do
  local kind, key, numbers, values = stream[1], stream[2], stream[3], stream.values
  if not gone(key) and stream.first <= #numbers then
    local place, bytes = P..kind..':'..key, 0
    for i = stream.first, #numbers do
      call('XADD', place, numbers[i]..'-0', 'd', values[i])
      bytes = bytes + #values[i] + 16
    end
    call('HSET', P..'s:'..key, kind..'n', numbers[#numbers])
    count(key, bytes)
  end
end

for _, row in ipairs(turns) do
  local key, id = row[1], row[2]
  if not gone(key) then
    call('HSET', P..'t:'..key, id, row.value)
    call('HSET', P..'tp:'..key, id, row.prompt)
    call('ZADD', P..'tn:'..key, row[3], id)
    if row[5] then call('HSET', P..'ti:'..key, row[5], id) end
    if row[4] then
      call('SADD', P..'to:'..key, id)
      call('SADD', P..'open', key)
    elseif call('SREM', P..'to:'..key, id) == 1 and call('EXISTS', P..'to:'..key) == 0 then
      call('SREM', P..'open', key)
    end
    if row[6] then call('ZADD', P..'tb:'..key, row[6], id) else call('ZREM', P..'tb:'..key, id) end
  end
end

for _, row in ipairs(permissions) do
  local key, id, member = row[1], row[2], row[3]
  if not gone(key) then
    call('HSET', P..'q:'..key, id, row.value)
    call('HSET', P..'qd:'..key, id, row.detail)
    local old = call('HGET', P..'qm:'..key, id)
    if old and old ~= member then call('ZREM', P..'pending', old) end
    if member then
      call('HSET', P..'qm:'..key, id, member)
      call('ZADD', P..'pending', row[4], member)
    elseif old then
      call('HDEL', P..'qm:'..key, id)
    end
    if row[5] then call('ZADD', P..'qb:'..key, row[5], id) else call('ZREM', P..'qb:'..key, id) end
  end
end

for _, row in ipairs(snapshots) do
  local place = P..'x:'..row[1]
  if not gone(row[1]) and row[2] >= tonumber(call('HGET', place, 'v') or 0) then
    call('HSET', place, 'v', row[2], 'd', row.value)
  end
end

if #texts > 0 then
  local number = tonumber(call('HGET', P..'meta', 'text') or 0)
  local added, agents = {}, {}
  local function post(block, word, place, times)
    local posted = place * 128 + math.min(times, 127)
    local list = added[block]
    if not list then list = {} added[block] = list end
    list[word] = (list[word] or '')..string.char(math.floor(posted / 256), posted % 256)
  end
  for _, row in ipairs(texts) do
    local key, sequence, time, found, counts = row[1], row[2], row[3], row[5], row[6]
    if not gone(key) and call('ZCOUNT', P..'ts:'..key, sequence, sequence) == 0 then
      local block, place = math.floor(number / 512), number % 512
      number = number + 1
      call('HSET', P..'d:'..block, place, row.value)
      call('SETRANGE', P..'m:'..block, place * 16, struct.pack('>dI4I4', time, key, sequence))
      local range, low, high = call('HGET', P..'range', block), time, time
      if range then
        low, high = struct.unpack('>dd', range)
        low, high = math.min(low, time), math.max(high, time)
      end
      call('HSET', P..'range', block, struct.pack('>dd', low, high))
      call('ZADD', P..'ts:'..key, sequence, number - 1)
      if not agents[key] then agents[key] = call('HGET', P..'s:'..key, 'agent') or '' end
      post(block, 's:'..key, place, 1)
      post(block, 'a:'..agents[key], place, 1)
      for i = 1, #found do post(block, ':'..found[i], place, counts[i]) end
      count(key, 2 * #row.value)
    end
  end
  for block, list in pairs(added) do
    for word, posted in pairs(list) do
      local place = P..'w'..word
      call('HSET', place, block, (call('HGET', place, block) or '')..posted)
    end
  end
  call('HSET', P..'meta', 'text', number)
end
if total > 0 then call('HINCRBY', P..'meta', 'bytes', total) end
return {'ok'}
"""
)

# What the reading scripts share: an answer is a list of numbers and a blob.
READ: Final = """
local P = KEYS[1]
local call = redis.call
local numbers, values = {}, {}
local function put(value)
  numbers[#numbers + 1] = value and #value or -1
  if value then values[#values + 1] = value end
end
local function put_session(key)
  local row = call('HMGET', P..'s:'..key, 'row', 'f', 'l', 'v')
  if not row[1] then return false end
  for _, number in ipairs({key, row[2], row[3], row[4]}) do numbers[#numbers + 1] = tonumber(number) end
  put(row[1])
  return true
end
local function answer()
  if #numbers == 0 then return {'', ''} end
  return {cmsgpack.pack(numbers), table.concat(values)}
end
"""

# ARGV: "name" NAME, "native" AGENT NATIVE, or "keys" KEY…
ROWS: Final = (
    READ
    + """
if ARGV[1] == 'name' then
  local key = call('HGET', P..'names', ARGV[2])
  if key then put_session(key) end
elseif ARGV[1] == 'native' then
  local newest = call('ZREVRANGE', P..'n:'..#ARGV[2]..':'..ARGV[2]..ARGV[3], 0, 0)
  if newest[1] then put_session(newest[1]) end
else
  for i = 2, #ARGV do put_session(ARGV[i]) end
end
return answer()
"""
)

# ARGV: the key before, how many.
SESSION_PAGE: Final = (
    READ
    + """
for _, key in ipairs(call('ZREVRANGEBYSCORE', P..'list', '('..ARGV[1], 0, 'LIMIT', 0, ARGV[2])) do
  put_session(key)
end
return answer()
"""
)

# ARGV: "e" or "v", K, first number, how many, bytes, with "raw", "newest" first. The first number of the
# answer says whether it goes on; then for each its number, its size, and with "raw" its envelope's.
EVENTS: Final = (
    READ
    + """
local kind, key, first, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local room, raw, newest = tonumber(ARGV[5]), ARGV[6] == 'raw', ARGV[6] == 'newest'
local place, from, taken, total, envelope, envelopes = P..kind..':'..key, first..'-0', 0, 0, false, nil
local step, sent, ends = 8, 0, false
numbers[1] = 0
while taken < limit and not ends do
  local asked = math.min(step, limit - taken)
  local chunk
  if newest then chunk = call('XREVRANGE', place, from, '-', 'COUNT', asked)
  else chunk = call('XRANGE', place, from, '+', 'COUNT', asked) end
  ends = #chunk < asked
  for _, entry in ipairs(chunk) do
    local value, more = entry[2][2], false
    local stop = string.find(value, '\\n', 1, true)
    local size = #value - stop
    if raw then
      local index = string.match(string.sub(value, 1, stop - 1), '(%d+)%]$')
      if index ~= envelope then
        envelope = index
        local found = call('XRANGE', P..'v:'..key, index..'-0', index..'-0')[1]
        envelopes = found and found[2][2]
      end
      more = envelopes and string.sub(envelopes, string.find(envelopes, '\\n', 1, true) + 1)
      if more then size = size + #more end
    end
    total = total + size
    if total > room and taken > 0 then ends = true break end
    if taken > 0 and sent + #value > 2097152 then numbers[1] = 1 ends = true break end
    taken, sent = taken + 1, sent + size
    numbers[#numbers + 1] = tonumber(string.sub(entry[1], 1, -3))
    put(value)
    if raw then put(more) end
    if total > room then ends = true break end
    if taken >= 2048 and taken < limit then numbers[1] = 1 ends = true break end
    if newest then from = (numbers[#numbers - 1] - 1)..'-0'
    else from = (tonumber(string.sub(entry[1], 1, -3)) + 1)..'-0' end
  end
  if from == '0-0' then ends = true end
  if taken > 0 then step = math.max(1, math.min(step * 2, 256, math.floor(262144 * taken / (total + 1)))) end
end
return answer()
"""
)

# ARGV: K.
SNAPSHOT: Final = "return redis.call('HGET', KEYS[1]..'x:'..ARGV[1], 'd')"

# ARGV: K, "newest" LIMIT, "id" TURN or "key" IDEMPOTENCY KEY. Per turn: sizes of its row and its prompt.
TURNS: Final = (
    READ
    + """
local key, ids = ARGV[1], {}
if ARGV[2] == 'newest' then
  ids = call('ZREVRANGE', P..'tn:'..key, 0, tonumber(ARGV[3]) - 1)
elseif ARGV[2] == 'id' then
  ids = {ARGV[3]}
else
  ids = {call('HGET', P..'ti:'..key, ARGV[3]) or nil}
end
for _, id in ipairs(ids) do
  local row = call('HGET', P..'t:'..key, id)
  if row then
    put(row)
    put(call('HGET', P..'tp:'..key, id))
  end
end
return answer()
"""
)
OPEN_KEYS: Final = "return redis.call('SMEMBERS', KEYS[1]..'open')"

# ARGV: K… Per session: its row, the number of its turns, and those.
OPEN: Final = (
    READ
    + """
for i = 1, #ARGV do
  if put_session(ARGV[i]) then
    local ids = call('SMEMBERS', P..'to:'..ARGV[i])
    numbers[#numbers + 1] = #ids
    for _, id in ipairs(ids) do
      put(call('HGET', P..'t:'..ARGV[i], id))
      put(call('HGET', P..'tp:'..ARGV[i], id))
    end
  end
end
return answer()
"""
)

# ARGV: K, permission id.
PERMISSION: Final = (
    READ
    + """
local row = call('HGET', P..'q:'..ARGV[1], ARGV[2])
if row then
  put(row)
  put(call('HGET', P..'qd:'..ARGV[1], ARGV[2]))
end
return answer()
"""
)

# ARGV: from which place, to which. The first number of the answer says how many were looked at.
PENDING: Final = (
    READ
    + """
local members = call('ZRANGE', P..'pending', ARGV[1], ARGV[2])
numbers[1] = #members
for _, member in ipairs(members) do
  local key, id = tonumber(string.sub(member, 1, 10)), string.sub(member, 23)
  if put_session(key) then
    put(call('HGET', P..'q:'..key, id))
    put(call('HGET', P..'qd:'..key, id))
  end
end
return answer()
"""
)
