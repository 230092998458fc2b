#!lua flags=allow-oom,allow-cross-slot-keys
-- Reads sessions and slides those that are due.
--
-- ARGV[1]    touch: seconds of Ultima_Actividad's age below which a session is not slid
-- ARGV[2]    max: seconds from Fecha_Inicio that a session lives at the most
-- ARGV[3..]  session keys, of any slots of this node. They are arguments so that one call can
--            take many slots; a lone key comes as KEYS[1] too, so that a Cluster client routes it.
--
-- Return value: one entry a key, as read() in session.lua gives it; how many were slid; and the
-- sessions that ended because their index had lost them, as delete() gives them. A bad record is
-- its own entry's affair. Flags: a check works when memory is full (the few bytes that a slide
-- writes replace as many).

local touch, max = tonumber(ARGV[1]), tonumber(ARGV[2])
local slides, ended = 0, {}

-- Return value: the key's entry.
local function slide(key, session)
  local window = tonumber(session[VENTANA])
  local due = math.min(touch, math.max(1, math.floor(window / 2)))
  if now - session[ACTIVIDAD] < due then
    return session
  end
  local expiracion = math.max(session[EXPIRACION], math.min(now + window, session[INICIO] + max))
  local outcome = write(key, session, expiracion, 'actividad', int(now))
  if type(outcome) == 'string' then
    return outcome
  elseif outcome then
    ended[#ended + 1] = outcome
    return false
  end
  session[ACTIVIDAD] = int(now)
  slides = slides + 1
  return session
end

local reply = {}
for i = 3, #ARGV do
  local session = read(ARGV[i])
  if type(session) == 'table' and session[ESTADO] == '1' then
    session = slide(ARGV[i], session)
  end
  reply[i - 2] = session or false
end
reply[#ARGV - 1], reply[#ARGV] = slides, ended
return reply
