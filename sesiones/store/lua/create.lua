#!lua
-- Makes a session. Run again for the same key, it returns the session that is there.
--
-- KEYS[1]  hash: the session; absent at the first run
-- KEYS[2]  sorted set: the user's index
-- KEYS[3]  string: the bucket's counter
-- ARGV[1]  integer: the number of the bucket
-- ARGV[2]  integer: ID_Usuario
-- ARGV[3]  text: Dispositivo
-- ARGV[4]  integer: idle, the new session's window in seconds
-- ARGV[5]  integer: max, how many seconds a session lives at the most
-- ARGV[6]  integer: how many sessions the user may have
--
-- Return value: an array of three: the session's text and expiry, as fetch() in session.lua returns
-- them, and an array of the sessions that ended, each as delete() returns it: those that expire
-- first, when the user has as many as allowed.

local EPOCH = 1767225600 -- 2026-01-01, in Redis's time

local bucket, usuario, dispositivo = ARGV[1], ARGV[2], ARGV[3]
local idle, max, allowed = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local base, digest = split(KEYS[1])

local existing, reason = read(KEYS[1])
if existing then
  -- WAIT confirms only what its own connection wrote: a success must write something.
  redis.call('EXPIREAT', KEYS[1], int(existing.expiracion))
  return {existing.text, existing.expiracion, {}}
elseif reason then
  return {reason, false, {}}
end

-- What can fail comes first, so that an error leaves nothing half done: an index or a counter of
-- another type, and keys that a Cluster has moved away already.
prune(KEYS[2])
local surplus = redis.call('ZCARD', KEYS[2]) + 1 - allowed
local first = surplus > 0 and redis.call('ZRANGE', KEYS[2], 0, surplus - 1) or {}
for _, one in ipairs(first) do
  redis.call('EXPIRETIME', base .. 'h:' .. one)
end
local n = redis.call('INCRBY', KEYS[3], 1)

-- A failover can lose the counter's last writes, and then numbers would be given twice. Therefore
-- the counter is raised to the time since 2026 in 256ths of a second. No number is given twice as
-- long as a bucket gets at most 256 sessions a second.
local time = redis.call('TIME')
local floor = math.floor((time[1] - EPOCH + time[2] / 1e6) * 256)
if n < floor then
  n = redis.call('INCRBY', KEYS[3], int(floor - n))
end

local ended = {}
for _, one in ipairs(first) do
  ended[#ended + 1] = delete(base, one)
  redis.call('ZREM', KEYS[2], one)
end

local session = {
  inicio = now, actividad = now, ventana = idle, estado = '1',
  id = int(n * 4096 + bucket), usuario = usuario, dispositivo = dispositivo,
}
local expiracion = now + math.min(idle, max)
redis.call('ZADD', KEYS[2], int(expiracion), digest)
write(KEYS[1], session, expiracion)
return {session.text, session.expiracion, ended}
