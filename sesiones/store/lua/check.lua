#!lua flags=allow-oom,allow-cross-slot-keys
-- Reads sessions and slides those that are due.
--
-- KEYS[1]    key of a session: declared only when ARGV has one key alone, so that a node of a
--            Cluster answers MOVED or ASK. Otherwise no key is declared, because one call takes the
--            keys of many slots
-- ARGV[1]    integer: touch, the age of Ultima_Actividad in seconds below which nothing is slid; or
--            '' to slide nothing
-- ARGV[2]    integer: max, how many seconds a session without a maximum life of its own lives at
--            the most
-- ARGV[3..]  keys of sessions, of any slots of this node
--
-- Return value: an array: two entries for each key of ARGV, as fetch() in session.lua returns them;
-- an integer, Redis's time in microseconds; an integer, how many sessions were slid; and an array
-- of the sessions that ended because their index had lost them, each as delete() returns it. Only
-- what decides whether a slide is due is parsed: the caller finds malformed records, and each costs
-- no other session its check.
--
-- allow-oom: a check works when the memory is full, since a slide writes about as much as it frees.

local touch, max = tonumber(ARGV[1]), tonumber(ARGV[2])
local slides, ended = 0, {}

-- Whether the session is active, and its Ultima_Actividad at least `touch` seconds old; or as old
-- as half of its window (rounded down, but at least 1 s), if that is less.
local function is_due(text)
  local inicio, uso, ventana = string.match(text, '^(%d+) (%d+) (%d+) 1 ')
  local age = inicio and now - inicio - uso
  return age and touch and (age >= touch or age >= 1 and 2 * age + 1 >= tonumber(ventana))
end

local slide
local function check(key)
  local text, expiracion = fetch(key)
  if not (expiracion and is_due(text)) then
    return text, expiracion
  end
  slide = slide or make_slide()
  local outcome
  text, expiracion, outcome = slide(key, text, expiracion, max)
  if outcome == true then
    slides = slides + 1
  elseif outcome then
    ended[#ended + 1] = outcome
  end
  return text, expiracion
end

local reply = {}
for i = 3, #ARGV do
  reply[2 * i - 5], reply[2 * i - 4] = check(ARGV[i])
end
reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = time[1] * 1e6 + time[2], slides, ended
return reply
