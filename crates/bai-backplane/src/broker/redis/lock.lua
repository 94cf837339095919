-- Takes a lock unless somebody has it; gives the token or nothing.
-- The token is the clock in microseconds, or one more than the last where that is greater: it grows even when
-- everything was forgotten in between.
-- KEYS: lock. ARGV: ttl in milliseconds, who takes it.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return false
end
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', 'lock-token') or 0)
local token = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', 'lock-token', token)
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[2], 'PX', ARGV[1])
return token
