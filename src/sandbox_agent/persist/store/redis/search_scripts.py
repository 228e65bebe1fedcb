"""The scripts that search; the keys are told in ``scripts``."""

from __future__ import annotations

from typing import Final

from sandbox_agent.persist.store.redis.scripts import READ

__all__ = ["COUNT", "DOCUMENTS", "FIND"]

# ARGV: how many are many, then words. Says whether fewer texts than that have one of them.
COUNT: Final = """
local many = tonumber(ARGV[1])
for i = 2, #ARGV do
  local place = KEYS[1]..'w:'..ARGV[i]
  local found = redis.call('HLEN', place)
  if found < many then
    found = 0
    for _, block in ipairs(redis.call('HKEYS', place)) do
      found = found + redis.call('HSTRLEN', place, block) / 2
      if found >= many then break end
    end
    if found < many then return 1 end
  end
end
return 0
"""

# ARGV[1]: keys of the words and of the filters (which count nothing), lowest time, time behind the highest,
# the block to begin with (-1: the newest), how many texts are wanted, how much work is meant. Says the block
# to go on with (-1: that was all), then for each text its number, its time and how often it has the words;
# newest first.
FIND: Final = """
local P = KEYS[1]
local call = redis.call
local asked = cmsgpack.unpack(ARGV[1])
local places, since, behind, block, wanted, room = {}, asked[3], asked[4], asked[5], asked[6], asked[7]
for _, word in ipairs(asked[1]) do
  places[#places + 1] = {P..'w:'..word, true, call('HLEN', P..'w:'..word)}
end
for _, word in ipairs(asked[2]) do
  places[#places + 1] = {P..'w'..word, false, call('HLEN', P..'w'..word)}
end
table.sort(places, function(a, b) return a[3] < b[3] end)
if places[1][3] == 0 then return {-1} end
if block < 0 then block = math.floor(tonumber(call('HGET', P..'meta', 'text') or 0) / 512) end
local blocks
if places[1][3] <= 1024 then
  blocks = {}
  for _, one in ipairs(call('HKEYS', places[1][1])) do
    if tonumber(one) <= block then blocks[#blocks + 1] = tonumber(one) end
  end
  table.sort(blocks, function(a, b) return a > b end)
end
local found, work, position = {0}, 0, 0
while true do
  position = position + 1
  if blocks then
    block = blocks[position]
    if not block then break end
  elseif position > 1 then
    block = block - 1
  end
  if block < 0 then break end
  if position > 1 and (work > room or #found > 3 * wanted) then
    found[1] = block
    return {cmsgpack.pack(found)}
  end
  work = work + 8
  local range = call('HGET', P..'range', block)
  local low, high
  if range then low, high = struct.unpack('>dd', range) end
  if range and high >= since and low < behind then
    local kept, counts
    for number, place in ipairs(places) do
      local posted = call('HGET', place[1], block)
      if not posted then kept = {} break end
      work = work + #posted / 2
      local list, times, bytes = {}, {}, {string.byte(posted, 1, -1)}
      for i = 1, #bytes, 2 do
        local upper, lower = bytes[i], bytes[i + 1]
        local at = upper * 2 + math.floor(lower / 128)
        if number == 1 or counts[at] then
          list[#list + 1] = at
          times[at] = (number == 1 and 0 or counts[at]) + (place[2] and lower % 128 or 0)
        end
      end
      kept, counts = list, times
      if #kept == 0 then break end
    end
    if #kept > 0 then
      local known = call('GET', P..'m:'..block) or ''
      work = work + #kept
      for i = #kept, 1, -1 do
        local at = kept[i]
        local time = #known >= at * 16 + 16 and struct.unpack('>d', known, at * 16 + 1) or 0
        if time >= since and time < behind then
          found[#found + 1] = block * 512 + at
          found[#found + 1] = time
          found[#found + 1] = counts[at]
        end
      end
    end
  end
end
found[1] = -1
return {cmsgpack.pack(found)}
"""

# ARGV: numbers of texts. Per text its size, -1 where it is erased; it may end before the last.
DOCUMENTS: Final = (
    READ
    + """
local total = 0
for i = 1, #ARGV do
  local value = call('HGET', P..'d:'..math.floor(ARGV[i] / 512), ARGV[i] % 512)
  total = total + (value and #value or 0)
  if i > 1 and total > 1048576 then break end
  put(value)
end
return answer()
"""
)
