#!lua flags=allow-oom
-- Ends every session of the caller's user.
--
-- KEYS[1]  hash: the caller's session
-- KEYS[2]  hash: the session that the request designates, of the same slot; may be the same key
--
-- Return value: an array of the live sessions that ended, each as delete() in session.lua returns
-- it; or a negative integer, as refusal() returns it.

local caller, designated = read(KEYS[1]), (read(KEYS[2]))
local refused = refusal(caller, designated)
if refused then
  return refused
end

local base, own = split(KEYS[1])
local index = base .. 'u:' .. caller.usuario
local digests = redis.call('ZRANGEBYSCORE', index, '(' .. int(now), '+inf')
-- All or none: this fails when a Cluster has moved one of them away already.
for _, digest in ipairs(digests) do
  redis.call('EXPIRETIME', base .. 'h:' .. digest)
end
prune(index)
local ended = {}
for _, digest in ipairs(digests) do
  ended[#ended + 1] = delete(base, digest)
  if digest == own then
    own = nil
  end
end
-- The index may have been deleted with its last member.
redis.pcall('ZREMRANGEBYSCORE', index, '(' .. int(now), '+inf')
-- If the index was incomplete, the caller's own session still ends.
if own then
  ended[#ended + 1] = delete(base, own)
end
return ended
