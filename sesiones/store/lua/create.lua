#!lua
-- Makes a session, and ends those that it replaces. Run again for the same key, it returns the
-- session that is there, and ends nothing.
--
-- KEYS[1]   hash: the session; absent at the first run
-- KEYS[2]   sorted set: the user's index
-- KEYS[3]   string: the bucket's counter
-- ARGV[1]   integer: the number of the bucket
-- ARGV[2]   integer: ID_Usuario
-- ARGV[3]   text: Dispositivo
-- ARGV[4]   integer: the session's window in seconds
-- ARGV[5]   integer: how many seconds the session lives when it is not used
-- ARGV[6]   integer: the session's own maximum life in seconds; or '' when it has none
-- ARGV[7]   integer: how many sessions the user may have, this one included
-- ARGV[8]   text: what happens at that limit: 'end' ends the sessions that expire first; 'refuse'
--           refuses; 'ask' writes nothing, and refuses where 'refuse' would
-- ARGV[9]   digest of a session of the bucket, of any user, that this one replaces; or ''
-- ARGV[10]  integer: ID_Sesion of a session of the user that this one replaces; or ''
-- ARGV[11]  '1' to end every other session of the user, else '0'
--
-- Return value: an array: the session's text and expiry, as fetch() in session.lua returns them, and
-- then, for each reason for which sessions ended ('replaced', 'others', 'limit'), that text and an
-- array of those sessions, each as delete() returns it. For 'ask', two nils. Or, when it refuses,
-- the text 'refused' and the user's sessions, as list_index() returns them: none of them has ended.

local EPOCH = 1767225600 -- 2026-01-01, in Redis's time

local bucket, usuario, dispositivo = ARGV[1], ARGV[2], ARGV[3]
local allowed, at_limit = tonumber(ARGV[7]), ARGV[8]
local previous, substituted, ends_others = ARGV[9], ARGV[10], ARGV[11] == '1'
local base, digest = split(KEYS[1])
local index = KEYS[2]

local existing, reason = read(KEYS[1])
if existing then
  -- WAIT confirms only what its own connection wrote, so a success must write something.
  redis.call('EXPIREAT', KEYS[1], int(existing.expiracion))
  return {existing.text, existing.expiracion}
elseif reason then
  return {reason, false}
end

-- Everything is chosen before anything is written, so that a refusal ends nothing.
local chosen, order = {}, {}
local foreign -- the index of another user whose session this one replaces
local function choose(one, why)
  if not chosen[one] then
    chosen[one] = why
    order[#order + 1] = one
  end
end

prune(index)
local members = redis.call('ZCARD', index)
if previous ~= '' or substituted ~= '' or ends_others then
  for _, one in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    if one == previous
      or substituted ~= '' and (read(base .. 'h:' .. one) or {}).id == substituted then
      choose(one, 'replaced')
    elseif ends_others then
      choose(one, 'others')
    end
  end
  local session = previous ~= '' and not chosen[previous] and read(base .. 'h:' .. previous)
  if session then
    foreign = base .. 'u:' .. session.usuario
  end
end
local surplus = members - #order + 1 - allowed
if surplus > 0 then
  if at_limit ~= 'end' then
    return {'refused', list_index(index)}
  end
  for _, one in ipairs(redis.call('ZRANGE', index, 0, surplus + #order - 1)) do
    if surplus > 0 and not chosen[one] then
      choose(one, 'limit')
      surplus = surplus - 1
    end
  end
end
if at_limit == 'ask' then
  return {false, false}
end

-- What can fail comes first, so that an error leaves nothing half done: an index or a counter of
-- another type, and keys that a Cluster has moved away already.
for _, one in ipairs(order) do
  redis.call('EXPIRETIME', base .. 'h:' .. one)
end
if foreign then
  redis.call('EXPIRETIME', foreign)
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

local ended = {replaced = {}, others = {}, limit = {}}
for _, one in ipairs(order) do
  local sessions = ended[chosen[one]]
  sessions[#sessions + 1] = delete(base, one)
  redis.call('ZREM', index, one)
end
if foreign then
  wrong_type(redis.pcall('ZREM', foreign, previous))
  ended.replaced[#ended.replaced + 1] = delete(base, previous)
  prune_and_expire(foreign)
end

local session = {
  inicio = now, actividad = now, ventana = tonumber(ARGV[4]), estado = '1',
  id = int(n * 4096 + bucket), usuario = usuario, dispositivo = dispositivo,
}
local expiracion = now + ARGV[5]
redis.call('ZADD', index, int(expiracion), digest)
if ARGV[6] ~= '' then
  -- The key has an expiry from the moment at which it exists: write() sets it in the same script.
  redis.call('HSET', KEYS[1], '2', ARGV[6])
end
write(KEYS[1], session, expiracion)

local reply = {session.text, session.expiracion}
for _, why in ipairs({'replaced', 'others', 'limit'}) do
  if #ended[why] > 0 then
    reply[#reply + 1], reply[#reply + 2] = why, ended[why]
  end
end
return reply
