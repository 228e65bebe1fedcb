"""Scripts that commit and read the rows of a server's store. Each script is atomic.

All keys of a namespace begin with ``KEYS[1]``. It contains the namespace as hash tag, so a cluster keeps them
on one node. ``K`` is the key of a session:

=================  ======================================================================================
fence              hash: ``gen``, the owner that may write; ``n``, the number of its newest call
lease              the owner, with a time to live
meta               hash: schema ``version``, last session ``key``, number of ``text``s, sum of ``bytes``
names              hash: session name -> K
list               sorted set of the keys of all visible sessions
n:AGENT…NATIVE     sorted set of the keys of the sessions with this agent and native session id
deleted            set of the keys of sessions whose deletion has not finished
s:K                hash: the session's ``row``, its numbers ``f``, ``l``, ``v``, the state of its streams
                   (``en``, ``vn``: newest; ``et``, ``vt``: erased up to; ``b``: bytes), ``del``: hidden
e:K, v:K           streams of events and envelopes, ids ``<sequence>-0`` and ``<index>-0``
r:K, rc:K          hashes: name -> data that several envelopes have, and how many; they have ``=NAME``
                   instead, and data that begins with ``=`` has one more
x:K                hash: the snapshot
t:K, tp:K          hashes: turn id -> row, and its prompt, which expires
tn:K, tb:K         sorted sets of turn ids: by number; by last event, of those whose prompts can expire
ti:K, to:K, open   hash: idempotency key -> turn id; set of open turns; set of all K with open turns
q:K, qd:K          hashes: permission id -> row, and its details, which expire
qm:K, qb:K         hash: id -> member of ``pending``; sorted set of those whose details can expire
pending            sorted set of the unanswered permission requests, by request time
d:BLOCK            hash: place in the block -> searchable text; texts are numbered from 0 in commit order,
                   and 512 of them are one block
ts:K               sorted set of a session's text numbers, by sequence
=================  ======================================================================================

Releases that had a full-text index also wrote ``w:WORD``, ``ws:K``, ``wa:AGENT``, ``m:BLOCK`` and ``range``,
and the envelopes of no session under ``v:0``. ``erase.SWEEP`` removes those keys.

A script first checks and then writes. Redis does not undo a script, so no write may fail. Only the owner
named in ``fence`` may write, and each of its calls has a higher number than the one before. A call that the
network delivers late, or that the client library sent twice, therefore changes nothing.
"""

from __future__ import annotations

from typing import Final

from sandbox_agent.persist.redis.scripts import Script

SCHEMA_VERSION: Final = 1

# whole(K, value): an envelope's value with its data. reference(value): the name of data that is elsewhere, or
# nil, and where the head of the value ends.
WHOLE: Final = """
local function reference(value)
  local stop = string.find(value, '\\n', 1, true)
  if string.sub(value, stop + 1, stop + 1) ~= '=' then return nil, stop end
  return string.match(value, '^%d+$', stop + 2), stop
end
local function whole(key, value)
  local name, stop = reference(value)
  if string.sub(value, stop + 1, stop + 1) ~= '=' then return value end
  local data = name and call('HGET', P..'r:'..key, name)
  -- A release that had no references did not escape.
  if name and not data then return value end
  return string.sub(value, 1, stop)..(data or string.sub(value, stop + 2))
end
"""

# Every script that writes begins with this check. ARGV[1]: the owner, ARGV[2]: the number of the call.
_PRELUDE: Final = """
local P = KEYS[1]
local call = redis.call
local fence = call('HMGET', P..'fence', 'gen', 'n')
if not fence[1] then return {'emptied'} end
if fence[1] ~= ARGV[1] then return {'fenced'} end
if tonumber(ARGV[2]) < tonumber(fence[2]) then return {'late'} end
if tonumber(ARGV[2]) == tonumber(fence[2]) then return {'done'} end
local is_hidden = {}
local function hidden(key)
  if is_hidden[key] == nil then is_hidden[key] = call('HEXISTS', P..'s:'..key, 'del') == 1 end
  return is_hidden[key]
end
"""


def write_script(body: str) -> Script:
    """Return a script that runs only for the namespace's owner, and only once for each call."""
    return Script(_PRELUDE + body)


# Atomic: checks the schema and the lease, then takes both the lease and the fence.
# ARGV: owner, time to live in ms, schema version. The first DEL lets the script run when memory is full.
ACQUIRE: Final = Script("""
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
""")

# Atomic: extends the lease only while the fence names this owner.
RENEW: Final = Script("""
local P = KEYS[1]
local owner = redis.call('HGET', P..'fence', 'gen')
if not owner then return {'emptied'} end
if owner ~= ARGV[1] then return {'fenced'} end
redis.call('DEL', P..'nothing')
redis.call('SET', P..'lease', ARGV[1], 'PX', ARGV[2])
return {'ok'}
""")

# Atomic: removes the lease only while it belongs to this owner.
RELEASE: Final = Script("""
if redis.call('GET', KEYS[1]..'lease') == ARGV[1] then redis.call('DEL', KEYS[1]..'lease') end
return {'ok'}
""")

# Atomic: allocates a session key above all earlier ones.
NEXT_KEY: Final = write_script("""
local newest = call('ZREVRANGE', P..'list', 0, 0)
local key = math.max(tonumber(newest[1] or 0), tonumber(call('HGET', P..'meta', 'key') or 0)) + 1
call('HSET', P..'meta', 'key', key)
call('HSET', P..'fence', 'n', ARGV[2])
return {'ok', key}
""")

# Atomic: one commit, all of its rows or none. ARGV[3] and ARGV[4]: the result of rows.pack_changes.
COMMIT: Final = write_script(
    WHOLE
    + """
local head, blob, at = cmsgpack.unpack(ARGV[3]), ARGV[4], 1
local sessions, streams, turns = head[1], head[2], head[3]
local permissions, snapshots, texts = head[4], head[5], head[6]
local function next_value(size)
  at = at + size
  return string.sub(blob, at - size, at - 1)
end

-- Check everything; the values of the blob are read in their order on the way.
local named = {}
for _, row in ipairs(sessions) do
  row.value = next_value(row[2])
  if not hidden(row[1]) then
    local other = named[row[3]] or call('HGET', P..'names', row[3])
    if other and tonumber(other) ~= row[1] then return {'taken', 'session', row[3]} end
    named[row[3]] = row[1]
  end
end
for _, stream in ipairs(streams) do
  local kind, key, numbers, sizes, values = stream[1], stream[2], stream[3], stream[4], {}
  for i = 1, #sizes do values[i] = next_value(sizes[i]) end
  stream.values, stream.first, stream.repeats = values, 1, stream[5]
  if not hidden(key) then
    local known = call('HMGET', P..'s:'..key, kind..'n', kind..'t')
    local newest, erased = tonumber(known[1] or 0), tonumber(known[2] or 0)
    while stream.first <= #numbers and numbers[stream.first] <= newest do
      local number = numbers[stream.first]
      if number > erased then
        local id = number..'-0'
        local found = call('XRANGE', P..kind..':'..key, id, id)[1]
        local stored, value = found and found[2][2], values[stream.first]
        if stored ~= value and (kind == 'e' or not stored or whole(key, stored) ~= whole(key, value)) then
          return {'other', kind, key, number}
        end
      end
      stream.first = stream.first + 1
    end
  end
end
for _, row in ipairs(turns) do
  row.value, row.prompt = next_value(row[7]), next_value(row[8])
  if row[5] and not hidden(row[1]) then
    local name = row[1]..':'..row[5]
    local other = named[name] or call('HGET', P..'ti:'..row[1], row[5])
    if other and other ~= row[2] then return {'taken', 'idempotency key', row[5]} end
    named[name] = row[2]
  end
end
for _, row in ipairs(permissions) do row.value, row.detail = next_value(row[6]), next_value(row[7]) end
for _, row in ipairs(snapshots) do row.value = next_value(row[3]) end
for _, row in ipairs(texts) do row.value = next_value(row[3]) end

-- Write. A server without free memory refuses the first write, before anything has changed.
call('HSET', P..'fence', 'n', ARGV[2])
local total = 0
local function count(key, bytes)
  call('HINCRBY', P..'s:'..key, 'b', bytes)
  total = total + bytes
end

for _, row in ipairs(sessions) do
  local key, name, agent, native = row[1], row[3], row[4], row[5]
  if not hidden(key) then
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
  if not hidden(key) and stream.first <= #numbers then
    local place, bytes = P..kind..':'..key, 0
    for i = stream.first, #numbers do
      local value = values[i]
      if stream.repeats[i] > 0 then
        local id = stream.repeats[i]..'-0'
        local earlier = call('XRANGE', place, id, id)[1]
        local stop = string.find(value, '\\n', 1, true)
        local data = string.sub(value, stop + 1)
        local other = earlier and whole(key, earlier[2][2])
        if other and string.sub(other, string.find(other, '\\n', 1, true) + 1) == data then
          local name = reference(earlier[2][2])
          if not name then
            name = tostring(numbers[i])
            call('HSET', P..'r:'..key, name, data)
            bytes = bytes + #data
          end
          call('HINCRBY', P..'rc:'..key, name, 1)
          value = string.sub(value, 1, stop)..'='..name
        end
      end
      call('XADD', place, numbers[i]..'-0', 'd', value)
      bytes = bytes + #value + 16
    end
    call('HSET', P..'s:'..key, kind..'n', numbers[#numbers])
    count(key, bytes)
  end
end

for _, row in ipairs(turns) do
  local key, id = row[1], row[2]
  if not hidden(key) then
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
  if not hidden(key) then
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
  if not hidden(row[1]) and row[2] >= tonumber(call('HGET', place, 'v') or 0) then
    call('HSET', place, 'v', row[2], 'd', row.value)
  end
end

if #texts > 0 then
  local number = tonumber(call('HGET', P..'meta', 'text') or 0)
  for _, row in ipairs(texts) do
    local key, sequence = row[1], row[2]
    if not hidden(key) and call('ZCOUNT', P..'ts:'..key, sequence, sequence) == 0 then
      call('HSET', P..'d:'..math.floor(number / 512), number % 512, row.value)
      call('ZADD', P..'ts:'..key, sequence, number)
      count(key, 2 * #row.value)
      number = number + 1
    end
  end
  call('HSET', P..'meta', 'text', number)
end
if total > 0 then call('HINCRBY', P..'meta', 'bytes', total) end
return {'ok'}
"""
)

# Shared by all scripts that read: their answer is a list of numbers and one blob. A read is one consistent
# view, because nothing else runs meanwhile.
_READ: Final = """
local P = KEYS[1]
local call = redis.call
local numbers, values = {}, {}
local function add(value)
  numbers[#numbers + 1] = value and #value or -1
  if value then values[#values + 1] = value end
end
local function answer()
  if #numbers == 0 then return {'', ''} end
  return {cmsgpack.pack(numbers), table.concat(values)}
end
"""


def _read_script(body: str) -> Script:
    return Script(_READ + body)


# ARGV: "name" NAME, "native" AGENT NATIVE, "page" KEY-BEFORE LIMIT, or "keys" KEY… Answers for each session
# its first and last sequence, its last envelope, and the size of its row.
SESSIONS: Final = _read_script("""
local keys = {}
if ARGV[1] == 'name' then
  keys = {call('HGET', P..'names', ARGV[2]) or nil}
elseif ARGV[1] == 'native' then
  keys = call('ZREVRANGE', P..'n:'..#ARGV[2]..':'..ARGV[2]..ARGV[3], 0, 0)
elseif ARGV[1] == 'page' then
  keys = call('ZREVRANGEBYSCORE', P..'list', '('..ARGV[2], 0, 'LIMIT', 0, ARGV[3])
else
  for i = 2, #ARGV do keys[#keys + 1] = ARGV[i] end
end
for _, key in ipairs(keys) do
  local row = call('HMGET', P..'s:'..key, 'row', 'f', 'l', 'v')
  if row[1] then
    for i = 2, 4 do numbers[#numbers + 1] = tonumber(row[i]) end
    add(row[1])
  end
end
return answer()
""")

# ARGV: "e" or "v", K, first number, limit, max bytes, and "raw", "newest" or "". The first number of the
# answer is 1 if there is more to read, else 0; then for each row its number, its size and with "raw" the size
# of its envelope (-1: erased).
EVENTS: Final = _read_script(
    WHOLE
    + """
local kind, key, first, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local room, raw, newest = tonumber(ARGV[5]), ARGV[6] == 'raw', ARGV[6] == 'newest'
local place, from, read, total, envelope, envelopes = P..kind..':'..key, first..'-0', 0, 0, false, nil
local step, sent, ends = 8, 0, false
local command, edge = newest and 'XREVRANGE' or 'XRANGE', newest and '-' or '+'
numbers[1] = 0
while read < limit and not ends do
  local wanted = math.min(step, limit - read)
  local chunk = call(command, place, from, edge, 'COUNT', wanted)
  ends = #chunk < wanted
  for _, entry in ipairs(chunk) do
    local number, value, more = tonumber(string.sub(entry[1], 1, -3)), entry[2][2], false
    if kind == 'v' then value = whole(key, value) end
    local stop = string.find(value, '\\n', 1, true)
    local size = #value - stop
    if raw then
      local index = string.match(string.sub(value, 1, stop - 1), '(%d+)%]$')
      if index ~= envelope then
        envelope = index
        local found = call('XRANGE', P..'v:'..key, index..'-0', index..'-0')[1]
        envelopes = found and whole(key, found[2][2])
      end
      more = envelopes and string.sub(envelopes, string.find(envelopes, '\\n', 1, true) + 1)
      if more then size = size + #more end
    end
    total = total + size
    if total > room and read > 0 then ends = true break end
    if read > 0 and sent + #value > 2097152 then numbers[1] = 1 ends = true break end
    read, sent = read + 1, sent + size
    numbers[#numbers + 1] = number
    add(value)
    if raw then add(more) end
    if total > room then ends = true break end
    if read >= 2048 and read < limit then numbers[1] = 1 ends = true break end
    from = (number + (newest and -1 or 1))..'-0'
  end
  if from == '0-0' then ends = true end
  if read > 0 then step = math.max(1, math.min(step * 2, 256, math.floor(262144 * read / (total + 1)))) end
end
return answer()
"""
)

# ARGV: the names of hashes, and a field of each. Answers the size of each value, -1 if there is none.
FIELDS: Final = _read_script("""
for i = 1, #ARGV, 2 do add(call('HGET', P..ARGV[i], ARGV[i + 1])) end
return answer()
""")

# ARGV: K or "" for all sessions, the cursor ("": the newest text), how many texts and bytes at most. The
# first number of the answer is the next cursor, -1 after the last text; then the size of each, newest first.
# A cursor is a sequence of the session, or a text number.
TEXTS: Final = _read_script("""
local key, limit, room, total = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), 0
local function add_text(number)
  local text = call('HGET', P..'d:'..math.floor(number / 512), number % 512)
  if text then
    add(text)
    total = total + #text
  end
end
numbers[1] = -1
if key ~= '' then
  local below = ARGV[2] == '' and '+inf' or '('..ARGV[2]
  local found = call('ZREVRANGEBYSCORE', P..'ts:'..key, below, '-inf', 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #found, 2 do
    add_text(tonumber(found[i]))
    if total >= room or i + 1 == 2 * limit then
      numbers[1] = tonumber(found[i + 1])
      break
    end
  end
  return answer()
end
local number = tonumber(ARGV[2]) or tonumber(call('HGET', P..'meta', 'text') or 0)
local block
for _ = 1, limit do
  if number <= 0 or total >= room then break end
  number = number - 1
  if block ~= math.floor(number / 512) then
    block = math.floor(number / 512)
    if call('EXISTS', P..'d:'..block) == 0 then number = block * 512 end
  end
  add_text(number)
end
if number > 0 then numbers[1] = number end
return answer()
""")
