#!lua flags=allow-oom
-- Ends one session of the caller's user.
--
-- KEYS[1]  hash: the caller's session
-- KEYS[2]  hash: the session to end, of the same slot; may be the same key
--
-- Return value: an array: the actor, and the sessions that ended, one or none, each as delete() in
-- writing.lua returns it; or a negative integer, as refusal() returns it.
--
-- allow-oom: ending a session works when the memory is full.

local caller, designated = read(KEYS[1]), (read(KEYS[2]))
local refused = refusal(caller, designated)
if refused then
  return refused
end
act_as(caller)
if not designated then
  -- WAIT confirms only what its own connection wrote: a success must write something.
  redis.call('EXPIREAT', KEYS[1], int(caller.expiracion))
  return {actor}
end

local base, digest = split(KEYS[2])
local index = base .. 'u:' .. caller.usuario
-- First the key that a Cluster may have moved away already: then nothing has been written.
wrong_type(redis.pcall('ZREM', index, digest))
local ended = delete(base, digest, 'logout', actor)
prune_and_expire(index)
return {actor, ended}
