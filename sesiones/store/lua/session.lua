-- Shared by every script: how a session is read. The store puts this text after the script's first
-- line, and then writing.lua and user.lua if the script may write; check.lua has slide.lua in the
-- place of user.lua. Before it, the store takes the last arguments out of ARGV: the tag of the
-- call, and those of every script that may write:
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

-- Lua's own tostring() rounds integers above 10^14.
local function int(number)
  return string.format('%.0f', number)
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
