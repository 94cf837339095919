-- The original's sliding window (http-api.md 3.13): same keys, same meaning, so that all managers count together.
-- KEYS: access key. ARGV: now and the window in seconds, the window in milliseconds.
local id = redis.call('INCR', '__request_id')
if id >= 1e12 then
  redis.call('SET', '__request_id', 1)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, tonumber(ARGV[1]) - tonumber(ARGV[2]))
redis.call('ZADD', KEYS[1], ARGV[1], string.format('%.0f', id))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('ZCARD', KEYS[1])
