-- KEYS: a member. ARGV: all that it has. There are as many keys as there are images.
local has = {}
for _, thing in ipairs(ARGV) do
  has[thing] = true
  redis.call('SADD', thing, KEYS[1])
end
for _, thing in ipairs(redis.call('KEYS', '*')) do
  if not has[thing] then
    redis.call('SREM', thing, KEYS[1])
  end
end
return #ARGV
