#!lua flags=allow-oom
-- Ends sessions that have ended before, should they be there again: a master that took over did
-- not know of it.
--
-- KEYS  the sessions, of one bucket
--
-- Return value: the sessions that ended, as delete() in session.lua gives them.

local base = split(KEYS[1])
local indexes = {}
for i, key in ipairs(KEYS) do
  local text = redis.pcall('HGET', key, '1')
  wrong_type(text)
  local session = parse(text)
  if session then
    indexes[i] = base .. 'u:' .. session.usuario
    -- All or none: this fails when a Cluster has moved the index away already.
    redis.call('EXPIRETIME', indexes[i])
  end
end
local ended = {}
for i, key in ipairs(KEYS) do
  local _, digest = split(key)
  if indexes[i] then
    -- It may have gone with its last member.
    redis.pcall('ZREM', indexes[i], digest)
    settle(indexes[i])
  end
  ended[#ended + 1] = delete(base, digest)
end
return ended
