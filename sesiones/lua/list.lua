#!lua flags=no-writes
-- The live sessions of a user.
--
-- KEYS[1]  the user's index
-- ARGV     digests of sessions of the bucket, which are the user's if their records say so: an index
--          that has lost members, or is gone, does not name them
--
-- Return value: one entry a session: its digest; the session as read() in session.lua gives it; and
-- 1 when the index names it, else 0.

local base, usuario = string.match(KEYS[1], '^([^}]*}:)u:(.*)$')
local sessions, indexed = {}, {}

local index = redis.pcall('ZRANGEBYSCORE', KEYS[1], '(' .. int(now), '+inf')
for _, digest in ipairs(wrong_type(index) and {} or index) do
  indexed[digest] = true
  local session = read(base .. 's:' .. digest)
  if session then
    sessions[#sessions + 1] = {digest, session, 1}
  end
end
for _, digest in ipairs(ARGV) do
  local session = read_live(base .. 's:' .. digest)
  if session and session[USUARIO] == usuario and not indexed[digest] then
    sessions[#sessions + 1] = {digest, session, 0}
  end
end
return sessions
