-- Shared by the scripts that may write, check.lua apart: who may end sessions, and what a script
-- writes that finds none to end.

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

-- The caller's session is the actor. The name of its token is there already.
local function act_as(caller)
  actor = 'session ' .. caller.id .. ', ' .. actor
end

-- WAIT confirms only what its own connection wrote, so a success must write something, also where
-- no key of the user is left. Without a counter there has been no session.
local function write_anything(counter)
  if redis.call('EXPIRETIME', counter) == -1 then
    wrong_type(redis.pcall('INCRBY', counter, 0))
  end
end
