#!lua flags=allow-oom
-- Ends every session of the caller's user.
--
-- KEYS[1]  the caller's session
-- KEYS[2]  the session that the request designates, of the same slot; may be the same key
--
-- Return value: the live sessions that ended, as delete() in session.lua gives them; or what
-- refusal() does.

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
-- It may be gone with its last member.
redis.pcall('ZREMRANGEBYSCORE', index, '(' .. int(now), '+inf')
-- Were the index ever incomplete, the caller's own session still ends.
if own then
  ended[#ended + 1] = delete(base, own)
end
return ended
