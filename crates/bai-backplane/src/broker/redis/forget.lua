-- KEYS: a member that has nothing any more. There are as many keys as there are images.
local things = redis.call('KEYS', '*')
for _, thing in ipairs(things) do
  redis.call('SREM', thing, KEYS[1])
end
return #things
