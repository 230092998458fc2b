-- Shared by every script: the store puts this text after the script's first line, and then user.lua
-- unless the script takes a batch of sessions. Before it, the store takes the last arguments out of
-- ARGV: the tag of the call, and those of every script that may write:
--   actor  text: who asks for this, for the traces; a token has its name in the log
--   keep   integer: for how many seconds a trace is kept of a session that is gone; 0: none is kept
--
-- An integer in ARGV is decimal text. An array in a reply ends before its first nil, so a script
-- puts `false` in the place of a value that is absent; Redis replies it as nil.
--
-- <prefix>:{<bucket>}:h:<digest>   hash        one session, in the field 1; its expiry is the key's
--                                              own. Field 2, where there is one: the session's own
--                                              maximum life in seconds. Other fields are ignored
--                                              and preserved
-- <prefix>:{<bucket>}:u:<usuario>  sorted set  the user's digests, scored by expiry
-- <prefix>:{<bucket>}:e:<digest>   hash        for some seconds, in the field 1: what has ended
--                                              when that session was made (create.lua)
-- <prefix>:{<bucket>}:w            sorted set  where `keep` is not 0: the traces of the bucket's
--                                              sessions that have ended or expired, scored by when.
--                                              A trace is six words, '-' for what is not known: the
--                                              digest, the reason, usuario, id, the last use, and
--                                              the actor, which may have blanks or be empty
-- <prefix>:{<bucket>}:n            string      the bucket's counter, never expires
--
-- The first key of a script gives it all others: they differ only after "}:".

-- The text of the field 1: six integers in decimal and the device. The integers are inicio, the
-- seconds from inicio to the last use, ventana, estado, id and usuario. (The field has a number as
-- its name because that takes a byte less.)
local RECORD = '^(%d+) (%d+) (%d+) ([01]) (%d+) (%d+):(.+)$'

local SECONDS_MAX = 1e12 -- of any date or window: EXPIREAT refuses what is far beyond
local INT_MAX = 9007199254740991

local time = redis.call('TIME')
local now = tonumber(time[1])

-- The digests of the sessions that this call has ended or changed, with their keys' base. They are
-- published after the operation, on the channel <prefix>:invalidated. A slide is not: it is due in
-- every cache at the same time.
local invalidated = {}
local function invalidate(base, digest)
  invalidated.base, invalidated[#invalidated + 1] = base, digest
end

-- Lua's own tostring() rounds integers above 10^14.
local function int(number)
  return string.format('%.0f', number)
end

-- "<prefix>:{<bucket>}:" and the digest of a session's key.
local function split(key)
  return string.match(key, '^([^}]*}:)h:(.*)$')
end

-- Takes a reply of redis.pcall(). Its error may be WRONGTYPE, from a key of another type: that is a
-- malformed record, which must fail no operation on other sessions. Any other error ends the
-- script: the ACL forbids the command, or the key is on another node of a Cluster. The caller of
-- the script relies on nothing having been written then. Therefore a script first touches all keys
-- that may be on another node, and never touches a key again that it has deleted.
-- Return value: the error of the reply, if it is one.
local function wrong_type(reply)
  if type(reply) == 'table' and reply.err then
    if not string.find(reply.err, '^WRONGTYPE') then
      error(reply)
    end
    return reply.err
  end
end

-- Return value: the fields of a reply to HGET, or nil when it is not the text of a session.
local function parse(text)
  local inicio, uso, ventana, estado, id, usuario, dispositivo =
    string.match(type(text) == 'string' and text or '', RECORD)
  if inicio and math.max(inicio, uso, ventana) <= SECONDS_MAX
    and math.max(id, usuario) <= INT_MAX then
    return {
      inicio = tonumber(inicio), actividad = inicio + uso, ventana = tonumber(ventana),
      estado = estado, id = id, usuario = usuario, dispositivo = dispositivo, text = text,
    }
  end
end

-- The record at a session's key, as the scripts return it. Redis keeps a key for the whole
-- millisecond of its expiry, so the clock decides whether the session lives.
-- Return value: its text and its expiry, an integer; or false twice, when no session lives there;
-- or, for a malformed record, what is wrong with it, and false.
local function fetch(key)
  local expiracion = redis.call('EXPIRETIME', key)
  if expiracion == -1 then
    return 'the key has no expiry', false
  elseif expiracion <= now then
    return false, false
  end
  local text = redis.pcall('HGET', key, '1')
  if type(text) == 'string' then
    return text, expiracion
  end
  return wrong_type(text) or 'the field 1 is missing', false
end

-- Return value: the live session at the key, as parse() gives it and with its expiry; or nil, and
-- what is wrong with it, if anything.
local function read(key)
  local text, expiracion = fetch(key)
  local session = expiracion and parse(text)
  if session then
    session.expiracion = expiracion
    return session
  end
  return nil, expiracion and 'the field 1 is not a session' or text
end

-- Return value: the own maximum life, in seconds, of the session at the key; nil when it has none;
-- false when it is malformed, which the scripts take for none.
local function own_life(key)
  local text = redis.call('HGET', key, '2')
  local seconds = text and string.match(text, '^%d+$') and tonumber(text)
  if seconds and seconds >= 1 and seconds <= SECONDS_MAX then
    return seconds
  elseif text then
    return false
  end
end

-- The traces that this call leaves: for each base, scores and members by turns. They are written
-- after the operation (traces.lua), so that an operation neither fails for them nor is done by
-- half.
local traces = {}
local function trace(base, digest, when, reason, session, by)
  if keep > 0 then
    local of_bucket = traces[base] or {}
    traces[base] = of_bucket
    of_bucket[#of_bucket + 1] = int(when)
    of_bucket[#of_bucket + 1] = table.concat({digest, reason, session.usuario or '-',
      session.id or '-', session.actividad and int(session.actividad) or '-', by or ''}, ' ')
  end
end

-- Deletes the session of a digest, and leaves a trace of it. `by`: the actor, if one asked for
-- that.
-- Return value: an array of its digest, ID_Sesion and ID_Usuario, as text ('' twice for a malformed
-- record); or nil when there was none.
local function delete(base, digest, reason, by)
  local key = base .. 'h:' .. digest
  local session = parse(redis.pcall('HGET', key, '1')) or {}
  if redis.call('DEL', key) == 1 then
    invalidate(base, digest)
    trace(base, digest, now, reason, session, by)
    return {digest, session.id or '', session.usuario or ''}
  end
end

-- Drops the index's expired members, each with the session key that it names: if the key remained,
-- a clock that steps back would bring the session back to life outside its index. A member stays
-- when its key may be on another node of a Cluster: in a slot that is being moved, Redis takes an
-- absent key to be there. An index of another type stays as it is.
local function prune(index)
  local base, usuario = string.match(index, '^([^}]*}:)u:(.*)$')
  local expired = redis.pcall('ZRANGEBYSCORE', index, '-inf', int(now), 'WITHSCORES')
  for i = 1, #expired, 2 do -- nothing, when the reply is an error
    local digest, expiracion = expired[i], expired[i + 1]
    local deleted = redis.pcall('DEL', base .. 'h:' .. digest)
    if type(deleted) == 'number' then
      redis.call('ZREM', index, digest)
      trace(base, digest, tonumber(expiracion), 'expired', {usuario = usuario})
    end
    if deleted == 1 then
      invalidate(base, digest)
    end
  end
end

-- When an index expires: with its latest member; or `keep` seconds later, because until then it
-- tells when its sessions expired.
local function index_expiry(latest)
  return int(math.min(latest + keep, INT_MAX))
end

-- Prunes the index and sets its expiry. It must not fail for an index of another type, nor for one
-- that is gone with its last member.
local function prune_and_expire(index)
  prune(index)
  local latest = redis.pcall('ZRANGE', index, -1, -1, 'WITHSCORES')
  if latest[2] then
    -- Rounded and bounded: a score that no script of ours gives must not fail the others' checks.
    redis.call('EXPIREAT', index, index_expiry(math.ceil(latest[2])))
  end
end

-- Writes an indexed session, and its expiry in the key and the index. The index is written first,
-- because it alone can refuse (a key of another type), and then nothing has been written. The key's
-- expiry is written last: if its second ends while the script runs, Redis 7.0 deletes the key at
-- once, and a field written after that would make a key that never expires.
-- A session that its index has lost (evicted, or expired while the clock was ahead) ends instead:
-- a logoutAll that has been acknowledged meanwhile cannot have found it.
-- An expiry that has passed deletes the session, as if Redis had expired it then: its text and
-- expiry are false.
-- Return value: nil; a string that says why nothing was written; or the session that ended, as
-- delete() gives it.
local function write(key, session, expiracion)
  local base, digest = split(key)
  local index = base .. 'u:' .. session.usuario
  local added = redis.pcall('ZADD', index, int(expiracion), digest)
  local refused = wrong_type(added)
  if refused then
    return 'index: ' .. refused
  elseif added == 1 then
    redis.call('ZREM', index, digest)
    return delete(base, digest, 'unindexed')
  elseif expiracion <= now then
    prune_and_expire(index)
    session.text, session.expiracion = false, false
    return
  end
  if expiracion >= (session.expiracion or math.huge) then
    -- The index has expired with its latest member so far. To look for that takes longer.
    prune(index)
    if redis.call('EXPIREAT', index, index_expiry(expiracion), 'GT') == 0
      and redis.call('EXPIRETIME', index) == -1 then
      prune_and_expire(index) -- no script of ours leaves an index without an expiry
    end
  else
    prune_and_expire(index)
  end
  session.expiracion = expiracion
  session.text = string.format('%.0f %.0f %.0f %s %s %s:%s', session.inicio,
    session.actividad - session.inicio, session.ventana, session.estado, session.id,
    session.usuario, session.dispositivo)
  redis.call('HSET', key, '1', session.text)
  redis.call('EXPIREAT', key, int(expiracion))
end
