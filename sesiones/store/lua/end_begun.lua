#!lua flags=allow-oom
-- Ends sessions of any users, for an operator: all, or those that began before a moment.
--
-- KEYS[1..]  hashes: the sessions, of one bucket
-- ARGV[1]    integer: the moment, in epoch seconds; or '' for all, malformed records too
--
-- Return value: an array: the actor, and the sessions that ended, each as delete() in writing.lua
-- returns it.

local base = split(KEYS[1])
local before = tonumber(ARGV[1])
local chosen, indexes = {}, {}
for _, key in ipairs(KEYS) do
  local text = redis.pcall('HGET', key, '1')
  wrong_type(text)
  local session = parse(text)
  if not before or (session and session.inicio < before) then
    chosen[#chosen + 1] = key
    if session then
      indexes[key] = base .. 'u:' .. session.usuario
      -- All or none: this fails when a Cluster has moved the index away already.
      redis.call('EXPIRETIME', indexes[key])
    end
  end
end
local reply = {actor}
for _, key in ipairs(chosen) do
  local _, digest = split(key)
  if indexes[key] then
    -- The index may have been deleted with its last member.
    redis.pcall('ZREM', indexes[key], digest)
    prune_and_expire(indexes[key])
  end
  reply[#reply + 1] = delete(base, digest, 'operator', actor)
end
return reply
