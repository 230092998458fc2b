#!lua flags=allow-oom
-- Ends every session of the caller's user, or every other one.
--
-- KEYS[1]  hash: the caller's session
-- KEYS[2]  hash: the session that the request designates, of the same slot; may be the same key
--
-- ARGV[1]  text: the reason: 'logout_all', or 'others' to keep the caller's
--
-- Return value: an array: the actor, and the live sessions that ended, each as delete() in
-- writing.lua returns it; or a negative integer, as refusal() returns it. With 'others', that is -1
-- too for a caller that the index has lost.

local caller, designated = read(KEYS[1]), (read(KEYS[2]))
local refused = refusal(caller, designated)
if refused then
  return refused
end
act_as(caller)

local base, own = split(KEYS[1])
local index = base .. 'u:' .. caller.usuario
local digests = redis.call('ZRANGEBYSCORE', index, '(' .. int(now), '+inf')
-- All or none: this fails when a Cluster has moved one of them away already.
local indexed = false
for _, digest in ipairs(digests) do
  redis.call('EXPIRETIME', base .. 'h:' .. digest)
  indexed = indexed or digest == own
end
local reason = ARGV[1]
local keeps_own = reason == 'others'
if keeps_own and not indexed then
  -- The caller's session is none of the user's: as in a list, and in end_user.lua.
  return -1
end
prune(index)
local reply = {actor}
for _, digest in ipairs(digests) do
  if not (keeps_own and digest == own) then
    reply[#reply + 1] = delete(base, digest, reason, actor)
  end
end
if keeps_own then
  -- Out of the range that is removed next: the index must not go with its last member, because a
  -- Cluster that is moving the slot would not let it be made again.
  redis.call('ZADD', index, '0', own)
end
-- The index may have been deleted with its last member.
redis.pcall('ZREMRANGEBYSCORE', index, '(' .. int(now), '+inf')
if keeps_own then
  redis.call('ZADD', index, int(caller.expiracion), own)
  redis.call('EXPIREAT', index, index_expiry(caller.expiracion))
elseif not indexed then
  -- If the index was incomplete, the caller's own session still ends.
  reply[#reply + 1] = delete(base, own, reason, actor)
end
return reply
