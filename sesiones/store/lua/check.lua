#!lua flags=allow-oom,allow-cross-slot-keys
-- Reads sessions and slides those that are due.
--
-- ARGV[1]    touch: seconds of Ultima_Actividad's age below which a session is not slid
-- ARGV[2]    max: seconds from Fecha_Inicio that a session without a maximum life of its own lives
--            at the most
-- ARGV[3..]  session keys, of any slots of this node. They are arguments so that one call can
--            take many slots; a lone key comes as KEYS[1] too, so that a Cluster client routes it.
--
-- Return value: two entries a key, as fetch() in session.lua gives them; how many were slid; and the
-- sessions that ended because their index had lost them, as delete() gives them. Only what decides
-- whether a slide is due is parsed: a bad record is for the caller to find, and its own affair.
-- Flags: a check works when memory is full (the few bytes that a slide writes replace as many).

local touch, max = tonumber(ARGV[1]), tonumber(ARGV[2])
local slides, ended = 0, {}

-- An active session is slid at the age of `touch` seconds, or of half its window if that is less.
local function is_due(text)
  local inicio, uso, ventana = string.match(text, '^(%d+) (%d+) (%d+) 1 ')
  local age = inicio and now - inicio - uso
  return age and (age >= touch or age >= 1 and 2 * age + 1 >= tonumber(ventana))
end

local function check(key)
  local text, expiracion = fetch(key)
  local session = expiracion and is_due(text) and parse(text)
  if not session then
    return text, expiracion
  end
  session.actividad = now
  local last = math.min(now + session.ventana, session.inicio + life(key, max))
  local outcome = write(key, session, math.max(expiracion, last))
  if not outcome then
    slides = slides + 1
    return session.text, session.expiracion
  elseif type(outcome) == 'table' then
    ended[#ended + 1] = outcome
    outcome = false
  end
  return outcome, false
end

local reply = {}
for i = 3, #ARGV do
  reply[2 * i - 5], reply[2 * i - 4] = check(ARGV[i])
end
reply[#reply + 1], reply[#reply + 2] = slides, ended
return reply
