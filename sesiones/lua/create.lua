#!lua
-- Makes a session. Run again for the same key, it returns the session that is there.
--
-- KEYS[1]  the session
-- KEYS[2]  the user's index
-- KEYS[3]  the bucket's counter
-- ARGV     bucket number, ID_Usuario, Dispositivo, idle seconds, max seconds, sessions a user
--          may have
--
-- Return value: the session as read() in session.lua gives it, and those that ended for it as
-- delete() does: when the user has as many as allowed, the ones that expire first.

local bucket, usuario, dispositivo = ARGV[1], ARGV[2], ARGV[3]
local idle, max, allowed = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local base, digest = split(KEYS[1])

local existing = read(KEYS[1])
if existing then
  if type(existing) == 'table' then
    rewrite(KEYS[1], existing)
  end
  return {existing, {}}
end

-- The two keys that could be of a wrong type come first: an error leaves nothing half done.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', int(now))
local id = int(redis.call('INCR', KEYS[3]) * 4096 + bucket)

local ended = {}
local surplus = redis.call('ZCARD', KEYS[2]) + 1 - allowed
if surplus > 0 then
  for _, first in ipairs(redis.call('ZRANGE', KEYS[2], 0, surplus - 1)) do
    ended[#ended + 1] = delete(base, first)
  end
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, surplus - 1)
end

local session = {id, usuario, int(now), '1', int(now), int(idle), dispositivo}
write(KEYS[1], session, now + math.min(idle, max), 'id', id, 'usuario', usuario,
  'inicio', int(now), 'estado', '1', 'actividad', int(now), 'ventana', int(idle),
  'dispositivo', dispositivo)
return {session, ended}
