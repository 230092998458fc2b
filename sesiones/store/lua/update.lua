#!lua
-- Updates a live session, active or not, from its object.
--
-- KEYS[1]  the session
-- ARGV     ID_Sesion, ID_Usuario, Fecha_Inicio, Fecha_Expiracion, Estado_Sesion,
--          Ultima_Actividad, Dispositivo, max seconds
--
-- Return value: {'ok', session as fetch() in session.lua gives it};
-- {'absent', what is wrong with it, if anything} when no session lives at the key;
-- {'unindexed', sessions as delete() gives them} when it ended because its index had lost it;
-- {'immutable', field, ...} when fields differ that never change;
-- {'dates', reason} with reason 'window' (Fecha_Expiracion is not after Ultima_Actividad),
-- 'lifetime' (beyond Fecha_Inicio + max) or 'past' (it would have expired already).

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
session.actividad, session.estado, session.dispositivo = actividad, ARGV[5], ARGV[7]

if expiracion ~= session.expiracion then
  local last = session.inicio + life(KEYS[1], tonumber(ARGV[8]))
  if given_window < 1 then
    return {'dates', 'window'}
  elseif expiracion > last then
    return {'dates', 'lifetime'}
  end
  expiracion = math.min(actividad + given_window, last)
  if expiracion <= now then
    return {'dates', 'past'}
  end
  session.ventana = given_window
end

local outcome = write(KEYS[1], session, expiracion)
if type(outcome) == 'string' then
  return redis.error_reply(outcome)
elseif outcome then
  return {'unindexed', {outcome}}
end
return {'ok', session.text, session.expiracion}
