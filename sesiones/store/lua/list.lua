#!lua flags=no-writes
-- The live sessions of a user.
--
-- KEYS[1]  the user's index
-- ARGV     digests of sessions of the bucket, which are the user's if their records say so: an index
--          that has lost members, or is gone, does not name them
--
-- Return value: one entry a session: its digest; what fetch() in session.lua gives; and 1
-- when the index names it, else 0.

local base, usuario = string.match(KEYS[1], '^([^}]*}:)u:(.*)$')
local sessions, indexed = list_index(KEYS[1]), {}
for _, session in ipairs(sessions) do
  indexed[session[1]] = true
end
for _, digest in ipairs(ARGV) do
  local session = read(base .. 'h:' .. digest)
  if session and session.usuario == usuario and not indexed[digest] then
    sessions[#sessions + 1] = {digest, session.text, session.expiracion, 0}
  end
end
return sessions
