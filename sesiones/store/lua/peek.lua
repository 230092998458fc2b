#!lua flags=no-writes,allow-cross-slot-keys
-- check.lua without the slide: for when Redis refuses writes, and for looking at a session without
-- using it.
--
-- KEYS, ARGV  as in check.lua; ARGV[1] and ARGV[2] are not used
--
-- Return value: as check.lua; but the time is 0, no session was slid, and none ended.

local reply = {}
for i = 3, #ARGV do
  reply[2 * i - 5], reply[2 * i - 4] = fetch(ARGV[i])
end
reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = 0, 0, {}
return reply
