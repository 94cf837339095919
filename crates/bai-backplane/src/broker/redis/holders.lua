-- How many members have each of ARGV.
local counts = {}
for number, thing in ipairs(ARGV) do
  counts[number] = redis.call('SCARD', thing)
end
return counts
