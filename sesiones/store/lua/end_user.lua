#!lua flags=allow-oom
-- Ends one session of a user, or all: for an operator, who needs no token, or for the user.
--
-- KEYS[1]    sorted set: the user's index
-- KEYS[2]    hash: the caller's session, which must be a live and active one that the index names;
--            none for an operator
-- ARGV[1]    integer: the ID_Sesion; or '' for all sessions
-- ARGV[2..]  digests of sessions of the bucket, which end too if their records name the user: an
--            index that has lost members, or is absent, does not name them
--
-- Return value: an array: the actor, and the sessions that ended, each as delete() in writing.lua
-- returns it; or a negative integer, as refusal() returns it for the caller's session; -1 too when
-- the index has lost that.

local base, usuario = string.match(KEYS[1], '^([^}]*}:)u:(.*)$')
local chosen, seen = {}, {}
local caller = KEYS[2] and read(KEYS[2])
local refused = KEYS[2] and refusal(caller)
if refused then
  return refused
elseif caller then
  act_as(caller)
end

-- Everything is read before anything is deleted: this fails when a Cluster has moved one of the
-- keys away already.
local function consider(digest, session, is_users)
  if is_users and not seen[digest] and (ARGV[1] == '' or (session and session.id == ARGV[1])) then
    seen[digest] = true
    chosen[#chosen + 1] = digest
  end
end

local index = redis.pcall('ZRANGEBYSCORE', KEYS[1], '(' .. int(now), '+inf')
local may = not KEYS[2]
for _, digest in ipairs(wrong_type(index) and {} or index) do
  local key = base .. 'h:' .. digest
  consider(digest, read(key), true)
  may = may or key == KEYS[2]
end
if not may then
  return -1
end
for i = 2, #ARGV do
  local session = read(base .. 'h:' .. ARGV[i])
  consider(ARGV[i], session, session and session.usuario == usuario)
end

local reply, reason = {actor}, caller and 'id' or 'operator'
for _, digest in ipairs(chosen) do
  wrong_type(redis.pcall('ZREM', KEYS[1], digest))
  reply[#reply + 1] = delete(base, digest, reason, actor)
end
prune_and_expire(KEYS[1])
if #chosen == 0 then
  write_anything(base .. 'n')
end
return reply
