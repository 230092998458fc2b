-- Shared by the scripts that may write: how a session is written, ended and forgotten. The store
-- puts it after session.lua, and makes the tables `invalidated` and `traces` before it.

-- `invalidated` has the digests of the sessions that this call has ended or changed, with their
-- keys' base. They are published after the operation, on the channel <prefix>:invalidated. A slide
-- is not: it is due in every cache at the same time.
local function invalidate(base, digest)
  invalidated.base, invalidated[#invalidated + 1] = base, digest
end

-- "<prefix>:{<bucket>}:" and the digest of a session's key.
local function split(key)
  return string.match(key, '^([^}]*}:)h:(.*)$')
end

-- `traces` has the traces that this call leaves: for each base, scores and members by turns. They
-- are written after the operation (traces.lua), so that an operation neither fails for them nor is
-- done by half.
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
