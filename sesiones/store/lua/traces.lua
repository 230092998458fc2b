-- Writes the traces that a call leaves: the store puts this text behind the operation, in a
-- function. An error ends it early, and does no harm: the key may be on another node of a Cluster.
-- When the memory is full, each session that is gone has freed more than its trace takes.
local TRACES_MAX = 10000 -- of a bucket: more, going at once, would keep Redis busy for too long
local TRACES_AT_ONCE = 100

for base, of_bucket in pairs(traces) do
  local key = base .. 'w'
  for first = 1, #of_bucket, 2 * TRACES_AT_ONCE do
    local last = math.min(first + 2 * TRACES_AT_ONCE - 1, #of_bucket)
    redis.call('ZADD', key, unpack(of_bucket, first, last))
  end
  redis.call('EXPIREAT', key, int(now + keep))
  redis.call('ZREMRANGEBYSCORE', key, '-inf', int(now - keep))
  local surplus = redis.call('ZCARD', key) - TRACES_MAX
  for _, oldest in ipairs(surplus > 0 and redis.call('ZRANGE', key, 0, surplus - 1) or {}) do
    redis.call('ZREM', key, oldest)
  end
end
