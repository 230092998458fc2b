#!lua flags=no-writes,allow-cross-slot-keys
-- What is known of sessions, live or gone, whose digests begin with a text and that are a user's.
--
-- KEYS[1]    one of the keys of ARGV, so that a node of a Cluster answers MOVED or ASK; or none,
--            when they are of many slots of this node
-- ARGV[1]    text: what the digests begin with; or ''
-- ARGV[2]    integer: ID_Usuario; or '' for every user
-- ARGV[3..]  keys: of sessions, of users' indexes, and of traces
--
-- Return value: an array: of a live session its digest, and its text and expiry, as fetch() in
-- session.lua returns them; of a session that is gone its trace, as session.lua describes it, and
-- when it ended. A session that has expired has its trace in the index until that is pruned.

local beginning, wanted = ARGV[1], ARGV[2]
local found = {}

local function add(usuario, digest, ...)
  if (wanted == '' or usuario == wanted) and string.sub(digest, 1, #beginning) == beginning then
    found[#found + 1] = {...}
  end
end

-- Return value: the members and their scores by turns; nothing for a key of another type.
local function members(...)
  local reply = redis.pcall(...)
  return wrong_type(reply) and {} or reply
end

for i = 3, #ARGV do
  local key = ARGV[i]
  local base, kind, rest = string.match(key, '^([^}]*}:)(%a):?(.*)$')
  if kind == 'h' then
    local session = read(key)
    if session then
      add(session.usuario, rest, rest, session.text, session.expiracion)
    end
  elseif kind == 'u' then
    local expired = members('ZRANGEBYSCORE', key, '-inf', int(now), 'WITHSCORES')
    for member = 1, #expired, 2 do
      local digest = expired[member]
      add(rest, digest, digest .. ' expired ' .. rest .. ' - - ', expired[member + 1])
    end
  elseif kind == 'w' then
    local gone = members('ZRANGE', key, 0, -1, 'WITHSCORES')
    for member = 1, #gone, 2 do
      local digest, usuario = string.match(gone[member], '^(%S+) %S+ (%S+)')
      add(usuario, digest or '', gone[member], gone[member + 1])
    end
  end
end
return found
