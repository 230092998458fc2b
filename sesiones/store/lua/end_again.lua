#!lua flags=allow-oom
-- Ends sessions that have ended before. A master that took over may still hold them, because it
-- did not receive their deletion.
--
-- KEYS[1..]  hashes: the sessions, of one bucket
--
-- Return value: an array: the actor, and the sessions that ended, each as delete() in writing.lua
-- returns it.

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
local reply = {actor}
for i, key in ipairs(KEYS) do
  local _, digest = split(key)
  if indexes[i] then
    -- The index may have been deleted with its last member.
    redis.pcall('ZREM', indexes[i], digest)
    prune_and_expire(indexes[i])
  end
  reply[#reply + 1] = delete(base, digest, 'failover')
end
return reply
