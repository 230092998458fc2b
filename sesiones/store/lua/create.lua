#!lua
-- Makes a session, and ends those that it replaces. Run again for the same key, it returns the
-- session that is there and what has ended for it, and ends nothing more.
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
--           refuses
-- ARGV[9]   digest of a session of the bucket, of any user, that this one replaces; or ''
-- ARGV[10]  integer: ID_Sesion of a session of the user that this one replaces; or ''
-- ARGV[11]  '1' to end every other session of the user, else '0'
-- ARGV[12]  integer: for how many seconds a second try may come
--
-- Return value: an array: the session's text and expiry, as fetch() in session.lua returns them,
-- and then, for each reason for which sessions ended ('replaced', 'others', 'limit'), that text and
-- an array of those sessions, each as delete() returns it. Or, when it refuses, the text 'refused'
-- and the user's sessions, as list.lua returns them: none of them has ended.

local EPOCH = 1767225600 -- 2026-01-01, in Redis's time
local READS_AT_LIMIT = 100 -- of sessions, each of which keeps Redis busy for 2.5 us

local bucket, usuario, dispositivo = ARGV[1], ARGV[2], ARGV[3]
local allowed, at_limit = tonumber(ARGV[7]), ARGV[8]
local previous, substituted, ends_others = ARGV[9], ARGV[10], ARGV[11] == '1'
local base, digest = split(KEYS[1])
local index = KEYS[2]

-- What has ended for this session: an array for each reason. It is kept for a second try, because
-- the reply of the first one may be lost, and each session that has ended needs a tombstone.
local endings_key = base .. 'e:' .. digest
local endings = redis.call('HGET', endings_key, '1')
endings = endings and cjson.decode(endings) or {}

local function reply(session)
  local result = {session.text, session.expiracion}
  for why, sessions in pairs(endings) do
    result[#result + 1], result[#result + 2] = why, sessions
  end
  return result
end

local existing, reason = read(KEYS[1])
if existing then
  -- WAIT confirms only what its own connection wrote, so a success must write something.
  redis.call('EXPIREAT', KEYS[1], int(existing.expiracion))
  return reply(existing)
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
  -- Members without a live session make room first, because no list shows them. A refusal has read
  -- all members; where sessions end instead, those that expire first have to do.
  local last = at_limit == 'refuse' and 0 or math.max(READS_AT_LIMIT, surplus + #order)
  local sessions, live = {}, {}
  for _, one in ipairs(redis.call('ZRANGE', index, 0, last - 1)) do
    local session = read(base .. 'h:' .. one)
    if session then
      sessions[#sessions + 1] = {one, session.text, session.expiracion, 1}
    end
    if session and not chosen[one] then
      live[#live + 1] = one
    elseif not chosen[one] then
      choose(one, 'limit')
      surplus = surplus - 1
    end
  end
  if surplus > 0 and at_limit == 'refuse' then
    return {'refused', sessions}
  end
  for i = 1, surplus do
    choose(live[i], 'limit')
  end
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

local function finish(one, why)
  local ended = delete(base, one, why, actor)
  if ended then
    endings[why] = endings[why] or {}
    table.insert(endings[why], ended)
  end
end
for _, one in ipairs(order) do
  finish(one, chosen[one])
  redis.call('ZREM', index, one)
end
if foreign then
  wrong_type(redis.pcall('ZREM', foreign, previous))
  finish(previous, 'replaced')
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

if next(endings) then
  redis.call('HSET', endings_key, '1', cjson.encode(endings))
  redis.call('EXPIREAT', endings_key, int(now + ARGV[12]))
end
return reply(session)
