-- Releases a lock whose holder has this token, or is the one who tried to take it under this name.
-- KEYS: lock. ARGV: token or name.
local held = redis.call('GET', KEYS[1])
if held and (string.match(held, '^%d+') == ARGV[1] or string.match(held, '%S+$') == ARGV[1]) then
  return redis.call('DEL', KEYS[1])
end
return 0
