-- KEYS: a member. ARGV: what it has.
for _, thing in ipairs(ARGV) do
  redis.call('SADD', thing, KEYS[1])
end
return #ARGV
