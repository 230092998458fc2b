#!lua flags=no-writes,allow-cross-slot-keys
-- What is wrong with keys: a session without an expiry or missing in its user's index, an index
-- that names a session that does not exist, a counter that expires.
--
-- ARGV[1..]  keys of this node, of any slots and types
--
-- Return value: an array with an array of two for each fault: the key, and what is wrong with it.

local faults = {}
local key

local function fault(what)
  faults[#faults + 1] = {key, what}
end

local function audit_session(base, digest)
  local session, reason = read(key)
  if reason then
    fault(reason)
  elseif session then
    local score = redis.pcall('ZSCORE', base .. 'u:' .. session.usuario, digest)
    if type(score) ~= 'string' then
      fault('the session is not in the index of user ' .. session.usuario)
    elseif tonumber(score) ~= session.expiracion then
      fault('the session and the index differ in when it expires')
    end
    if own_life(key) == false then
      fault('the field 2 is not a life in seconds')
    end
  end
end

local function audit_index(base)
  local members = redis.pcall('ZRANGE', key, 0, -1, 'WITHSCORES')
  if members.err then
    return fault(members.err)
  end
  local latest = 0
  for i = 1, #members, 2 do
    local expiracion = tonumber(members[i + 1])
    if expiracion > now and redis.call('EXISTS', base .. 'h:' .. members[i]) == 0 then
      fault('the index names a session that is not there')
    end
    latest = math.max(latest, expiracion)
  end
  local expiry = redis.call('EXPIRETIME', key)
  if expiry == -1 then
    fault('the key has no expiry')
  elseif latest > now and expiry < latest then
    fault('the index expires before its latest session')
  end
end

for _, argument in ipairs(ARGV) do
  key = argument
  local base, kind, rest = string.match(key, '^([^}]*}:)(%a)(.*)$')
  if kind == 'h' then
    audit_session(base, string.sub(rest, 2))
  elseif kind == 'u' then
    audit_index(base)
  elseif kind == 'n' and redis.call('EXPIRETIME', key) > -1 then
    fault('the counter expires: ID_Sesion would repeat')
  end
end
return faults
