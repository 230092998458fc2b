#!lua flags=no-writes
-- The live sessions of a user.
--
-- KEYS[1]    sorted set: the user's index
-- ARGV[1..]  digests of sessions of the bucket, which are listed too if their records name the
--            user: an index that has lost members, or is absent, does not name them
--
-- Return value: an array with an array of four for each session: its digest; its text and expiry,
-- as fetch() in session.lua returns them; and 1 when the index names it, else 0.

local base, usuario = string.match(KEYS[1], '^([^}]*}:)u:(.*)$')
local sessions, indexed = {}, {}
local digests = redis.pcall('ZRANGEBYSCORE', KEYS[1], '(' .. int(now), '+inf')
for _, digest in ipairs(wrong_type(digests) and {} or digests) do
  local text, expiracion = fetch(base .. 'h:' .. digest)
  if text then
    sessions[#sessions + 1] = {digest, text, expiracion, 1}
    indexed[digest] = true
  end
end
for _, digest in ipairs(ARGV) do
  local session = read(base .. 'h:' .. digest)
  if session and session.usuario == usuario and not indexed[digest] then
    sessions[#sessions + 1] = {digest, session.text, session.expiracion, 0}
  end
end
return sessions
