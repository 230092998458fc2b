#!lua flags=no-writes,allow-cross-slot-keys
-- Counts the live sessions and the users that have any.
--
-- ARGV[1]    integer: a moment, in epoch seconds; or ''
-- ARGV[2..]  keys of this node, of any slots and types
--
-- Return value: an array of five integers: the live sessions; those of them that are active; those
-- that began before the moment, or all for ''; when the oldest began, 0 when there is none; and the
-- users whose index names a session that has not expired.

local before = tonumber(ARGV[1])
local sessions, active, begun, oldest, users = 0, 0, 0, 0, 0
for i = 2, #ARGV do
  local kind = string.match(ARGV[i], '^[^}]*}:(%a):')
  local session = kind == 'h' and read(ARGV[i])
  if session then
    sessions = sessions + 1
    active = active + tonumber(session.estado)
    if not before or session.inicio < before then
      begun = begun + 1
    end
    if oldest == 0 or session.inicio < oldest then
      oldest = session.inicio
    end
  elseif kind == 'u' then
    local live = redis.pcall('ZRANGEBYSCORE', ARGV[i], '(' .. int(now), '+inf', 'LIMIT', 0, 1)
    if not wrong_type(live) and live[1] then
      users = users + 1
    end
  end
end
return {sessions, active, begun, oldest, users}
