#!lua
-- Updates a live session, active or not, from its object.
--
-- KEYS[1]  hash: the session
-- ARGV[1]  integer: ID_Sesion
-- ARGV[2]  integer: ID_Usuario
-- ARGV[3]  integer: Fecha_Inicio
-- ARGV[4]  integer: Fecha_Expiracion
-- ARGV[5]  0 or 1: Estado_Sesion
-- ARGV[6]  integer: Ultima_Actividad
-- ARGV[7]  text: Dispositivo
-- ARGV[8]  integer: max, how many seconds a session lives at the most
--
-- Return value: an array that begins with one of these words:
--   'ok', text, expiry,       the session as it now stands, as fetch() in session.lua returns it;
--     text...                 and what has changed, 'Ventana' for the window: the name, and of an
--                             integer "=" and its new value
--   'absent', text or false   no session lives at the key; what is wrong with its record, if it has
--                             one
--   'unindexed', array        an array with the session, as delete() returns it: it has ended,
--                             because its index had lost it
--   'immutable', text...      the names of fields that differ and never change
--   'dates', text             'window': Fecha_Expiracion is not after Ultima_Actividad; 'lifetime':
--                             it is beyond Fecha_Inicio + max; 'past': it would have passed already

local expiracion, actividad = tonumber(ARGV[4]), tonumber(ARGV[6])

local session, reason = read(KEYS[1])
if not session then
  return {'absent', reason}
end

local immutable = {'immutable'}
for argument, stored in ipairs({session.id, session.usuario, int(session.inicio)}) do
  if stored ~= ARGV[argument] then
    immutable[#immutable + 1] = ({'ID_Sesion', 'ID_Usuario', 'Fecha_Inicio'})[argument]
  end
end
if #immutable > 1 then
  return immutable
end

-- Ultima_Actividad never goes back, nor beyond now.
local given_window = expiracion - actividad
actividad = math.max(session.actividad, math.min(actividad, now))

local own = own_life(KEYS[1])
local last = session.inicio + (own or tonumber(ARGV[8]))
local ventana = session.ventana
if expiracion == session.expiracion then
  if own and expiracion > last then
    -- A node of a version that knows no field 2 has extended the session beyond its own life.
    expiracion = last
  end
else
  if given_window < 1 then
    return {'dates', 'window'}
  elseif expiracion > last then
    return {'dates', 'lifetime'}
  end
  expiracion = math.min(actividad + given_window, last)
  if expiracion <= now then
    return {'dates', 'past'}
  end
  ventana = given_window
end

local reply = {'ok', false, false}
local function note(field, stored, new)
  if stored ~= new then
    local value = field ~= 'Dispositivo' and '=' .. int(new) or ''
    reply[#reply + 1] = field .. value
  end
  return new
end
note('Fecha_Expiracion', session.expiracion, expiracion)
session.estado = note('Estado_Sesion', session.estado, ARGV[5])
session.actividad = note('Ultima_Actividad', session.actividad, actividad)
session.dispositivo = note('Dispositivo', session.dispositivo, ARGV[7])
session.ventana = note('Ventana', session.ventana, ventana)

local outcome = write(KEYS[1], session, expiracion)
if type(outcome) == 'string' then
  return redis.error_reply(outcome)
elseif outcome then
  return {'unindexed', {outcome}}
end
if #reply > 3 then
  invalidate(split(KEYS[1]))
end
reply[2], reply[3] = session.text, session.expiracion
return reply
