#!lua
-- Does nothing. Its flags let it write, so Redis refuses to run it whenever it would refuse a
-- write (READONLY, MISCONF, NOREPLICAS, OOM); a Redis older than 7.0 cannot even read its first
-- line. And it asks whether the user may do to our keys what the other scripts do.
--
-- ARGV[1]  a key of ours, which is not touched

local commands = {
  DEL = {}, EXPIREAT = {'1'}, EXPIRETIME = {}, HGET = {'f'}, HSET = {'f', 'v'}, INCRBY = {'1'},
  ZADD = {'1', 'm'}, ZCARD = {}, ZRANGE = {'0', '1'}, ZRANGEBYSCORE = {'0', '1'}, ZREM = {'m'},
  ZREMRANGEBYSCORE = {'0', '1'},
}
for command, arguments in pairs(commands) do
  if not redis.acl_check_cmd(command, ARGV[1], unpack(arguments)) then
    return redis.error_reply('NOPERM the user may not ' .. command .. ' ' .. ARGV[1])
  end
end
return 1
