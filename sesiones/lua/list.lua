#!lua flags=no-writes
-- The live sessions of a user.
--
-- KEYS[1]  the user's index
--
-- Return value: one entry a session: its digest, and the session as read() in session.lua gives it.

local base = string.match(KEYS[1], '^([^}]*}:)')
local sessions = {}
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. int(now), '+inf')) do
  local session = read(base .. 's:' .. digest)
  if session then
    sessions[#sessions + 1] = {digest, session}
  end
end
return sessions
