-- Prolongs a lock whose holder has this token.
-- KEYS: lock. ARGV: token, ttl in milliseconds.
local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^%d+') == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
