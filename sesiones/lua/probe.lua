#!lua
-- Does nothing. Its flags let it write, so Redis refuses to run it whenever it would refuse a
-- write (READONLY, MISCONF, NOREPLICAS, OOM); a Redis older than 7.0 cannot even read its first
-- line.
return 1
