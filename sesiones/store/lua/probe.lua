#!lua
-- Writes nothing. Its flags let it write, so Redis refuses to run it whenever it would refuse a
-- write (READONLY, MISCONF, NOREPLICAS, OOM). A Redis older than 7.0 cannot read its first line. It
-- also fails unless the ACL user may run the commands of the other scripts.
--
-- ARGV[1]  a key of the prefix, of which only the name is used
--
-- Return value: 1; or an error that names a command.

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
