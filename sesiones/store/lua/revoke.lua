#!lua flags=allow-oom
-- Ends a session, active or not, for a caller that needs no other token.
--
-- KEYS[1]  hash: the session
-- KEYS[2]  string: the bucket's counter
--
-- ARGV[1]  text: the reason
--
-- Return value: an array: the actor, and the sessions that ended, one or none, each as delete() in
-- writing.lua returns it.

local session = read(KEYS[1])
if not session then
  write_anything(KEYS[2])
  return {actor}
end

local base, digest = split(KEYS[1])
local index = base .. 'u:' .. session.usuario
-- First the key that a Cluster may have moved away already: then nothing has been written.
wrong_type(redis.pcall('ZREM', index, digest))
local ended = delete(base, digest, ARGV[1], actor)
prune_and_expire(index)
return {actor, ended}
