#!lua flags=allow-oom
-- Ends one session of a user, or all, for an operator: nobody's token is needed.
--
-- KEYS[1]  the user's index
-- ARGV[1]  the ID_Sesion, or '' for all
--
-- Return value: the sessions that ended, as delete() in session.lua gives them.

local base = string.match(KEYS[1], '^([^}]*}:)')
local chosen = {}
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. int(now), '+inf')) do
  local session = read_live(base .. 's:' .. digest)
  if ARGV[1] == '' or (session and session[ID] == ARGV[1]) then
    chosen[#chosen + 1] = digest
  end
end
local ended = {}
for _, digest in ipairs(chosen) do
  redis.call('ZREM', KEYS[1], digest)
  ended[#ended + 1] = delete(base, digest)
end
settle(KEYS[1])
return ended
