-- The slide of check.lua. The store puts this text and writing.lua into a function, make_slide(),
-- which check.lua calls for the first session that is due: Redis makes each function anew for each
-- call, and most checks slide nothing.
--
-- key         of a session whose text and expiry are `text` and `expiracion`
-- max         integer: its maximum life in seconds, when it has none of its own
--
-- Return value: the session's text and expiry, as fetch() returns them; and true when it was slid,
-- or, when it ended because its index had lost it, what delete() returns.
return function(key, text, expiracion, max)
  local session = parse(text)
  if not session then
    return text, expiracion
  end
  local own = own_life(key)
  local last = session.inicio + (own or max)
  local slid = math.max(expiracion, math.min(now + session.ventana, last))
  if own and slid > last then
    -- A node of a version that knows no field 2 has extended the session beyond its own life.
    slid = last
    invalidate(split(key))
  end
  session.actividad, session.expiracion = now, expiracion
  local outcome = write(key, session, slid)
  if not outcome then
    return session.text, session.expiracion, true
  elseif type(outcome) == 'table' then
    return false, false, outcome
  end
  return outcome, false
end
