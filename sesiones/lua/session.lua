-- Shared by every script: the store puts this text after the script's first line.
--
-- <prefix>:{<bucket>}:s:<digest>   hash        one session; its expiry is the key's own
-- <prefix>:{<bucket>}:u:<usuario>  sorted set  the user's digests, scored by expiry
-- <prefix>:{<bucket>}:n            string      the bucket's counter, never expires
--
-- The first key of a script gives it all others: they differ only after "}:".

local ID, USUARIO, INICIO, ESTADO, ACTIVIDAD, VENTANA, DISPOSITIVO, EXPIRACION = 1, 2, 3, 4, 5, 6, 7, 8

local INT_MAX = 9007199254740991

local now = tonumber(redis.call('TIME')[1])

-- Lua's own tostring() rounds integers above 10^14.
local function int(number)
  return string.format('%.0f', number)
end

-- "<prefix>:{<bucket>}:" and the digest of a session's key.
local function split(key)
  return string.match(key, '^([^}]*}:)s:(.*)$')
end

-- A key of another type is a bad record of its own; any other error that redis.pcall() returns
-- fails the script: the command is not allowed, or the key is on another node of a Cluster. Of
-- that the caller relies on nothing having been written, so scripts come first to the keys that
-- may be elsewhere, and never again to one that they have deleted.
-- Return value: the error of the reply, if it is one.
local function wrong_type(reply)
  if type(reply) == 'table' and reply.err then
    if not string.find(reply.err, '^WRONGTYPE') then
      error(reply)
    end
    return reply.err
  end
end

-- Return value: nil when no session lives at the key (Redis keeps a key for the whole millisecond
-- of its expiry, so the clock decides); else its seven fields as strings and its expiry as a
-- number; else, for a record that cannot be a session, a string that says what is wrong with it.
local function read(key)
  local expiracion = redis.call('EXPIRETIME', key)
  if expiracion == -1 then
    return 'the key has no expiry'
  end
  if expiracion <= now then
    return nil
  end
  local session = redis.pcall('HMGET', key,
    'id', 'usuario', 'inicio', 'estado', 'actividad', 'ventana', 'dispositivo')
  if session.err then
    return wrong_type(session)
  end
  for field = ID, VENTANA do
    local number = tonumber(session[field])
    if not number or number < 0 or number > INT_MAX then
      return 'a field is missing or not a number of 0 to 2^53-1'
    end
  end
  if not session[DISPOSITIVO] then
    return 'dispositivo is missing'
  end
  session[EXPIRACION] = expiracion
  return session
end

-- Like read(), but nil for a record that is not a session: it counts as not live.
local function read_live(key)
  local session = read(key)
  if type(session) == 'table' then
    return session
  end
end

-- Whether the caller may end the designated session (nil when it is not live).
-- Return value: nil when it may; -1 when the caller's own session is not live and active; -2 when
-- the designated one is another user's.
local function refusal(caller, designated)
  if not caller or caller[ESTADO] ~= '1' then
    return -1
  end
  if designated and designated[USUARIO] ~= caller[USUARIO] then
    return -2
  end
end

-- Deletes the session of a digest, which lies beside the others of its user.
-- Return value: its digest, ID and user ('' for a record that has none), or nil when there was none.
local function delete(base, digest)
  local key = base .. 's:' .. digest
  local fields = redis.pcall('HMGET', key, 'id', 'usuario')
  if redis.call('DEL', key) == 1 then
    return {digest, fields[1] or '', fields[2] or ''}
  end
end

-- Drops the index's expired members, each with the session key that it names: were the key still
-- there, a clock that steps back would bring the session back to life outside its index. A member
-- stays when its key may be on another node of a Cluster: in a slot that is being moved, Redis
-- takes what is not there for being elsewhere. An index of another type stays as it is.
local function prune(index)
  local expired = redis.pcall('ZRANGEBYSCORE', index, '-inf', int(now))
  if expired.err then
    return
  end
  local base = string.match(index, '^[^}]*}:')
  for _, digest in ipairs(expired) do
    if type(redis.pcall('DEL', base .. 's:' .. digest)) == 'number' then
      redis.call('ZREM', index, digest)
    end
  end
end

-- Prunes the index and lets it expire with its latest member. Ending a session must fail neither
-- for an index of another type nor for one that is gone with its last member.
local function settle(index)
  prune(index)
  local latest = redis.pcall('ZRANGE', index, -1, -1, 'WITHSCORES')
  if latest[2] then
    -- Rounded and bounded: a score that no script of ours gives must not fail the others' checks.
    redis.call('EXPIREAT', index, int(math.min(math.ceil(latest[2]), INT_MAX)))
  end
end

-- Writes what a live session's key has already. A success that wrote nothing would be one that WAIT
-- does not confirm, though it tells of what another connection has written just now.
local function rewrite(key, session)
  redis.call('EXPIREAT', key, int(session[EXPIRACION]))
end

-- Writes fields of an indexed session, named and valued in turn, and its expiry in the key and the
-- index. The index goes first: it alone can refuse (a key of another type), and then nothing has
-- been written. The expiry goes last: should its second end while the script runs, Redis 7.0
-- deletes the key at once, and a field written after that would make a key that never expires.
-- A session that its index has lost (evicted, or expired while the clock was ahead) ends instead:
-- a logoutAll that has been acknowledged meanwhile cannot have found it.
-- Return value: nil; a string that says why nothing was written; or the session that ended, as
-- delete() gives it.
local function write(key, session, expiracion, ...)
  local base, digest = split(key)
  local index = base .. 'u:' .. session[USUARIO]
  local added = redis.pcall('ZADD', index, int(expiracion), digest)
  local refused = wrong_type(added)
  if refused then
    return 'index: ' .. refused
  elseif added == 1 then
    redis.call('ZREM', index, digest)
    return delete(base, digest)
  end
  settle(index)
  redis.call('HSET', key, ...)
  redis.call('EXPIREAT', key, int(expiracion))
  session[EXPIRACION] = expiracion
end
