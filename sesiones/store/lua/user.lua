-- Shared by every script that acts on the sessions of one user. A batch of checks goes without: Redis
-- makes each function anew for each call.

-- Why the caller may not end the designated session (nil when that is not live).
-- Return value: nil when the caller may; -1 when the caller's own session is not live and active;
-- -2 when the designated one is another user's.
local function refusal(caller, designated)
  if not caller or caller.estado ~= '1' then
    return -1
  elseif designated and designated.usuario ~= caller.usuario then
    return -2
  end
end

-- WAIT confirms only what its own connection wrote, so a success must write something, also where
-- no key of the user is left. Without a counter there has been no session.
local function write_anything(counter)
  if redis.call('EXPIRETIME', counter) == -1 then
    wrong_type(redis.pcall('INCRBY', counter, 0))
  end
end

-- Return value: an array of the live sessions that an index names, each an array: its digest, what
-- fetch() returns, and 1. It is empty for an index of another type.
local function list_index(index)
  local base = string.match(index, '^[^}]*}:')
  local digests = redis.pcall('ZRANGEBYSCORE', index, '(' .. int(now), '+inf')
  local sessions = {}
  for _, digest in ipairs(wrong_type(digests) and {} or digests) do
    local text, expiracion = fetch(base .. 'h:' .. digest)
    if text then
      sessions[#sessions + 1] = {digest, text, expiracion, 1}
    end
  end
  return sessions
end
