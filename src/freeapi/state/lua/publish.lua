-- What a gateway has learned of a key: the latest word for each key and model, numbered.
local REPORTS_MAX = 10000
local q = unpack_(ARGV[1])
local field = q.key .. '|' .. q.model
local number = call('INCR', ns .. ':newest')
call('HSET', ns .. ':health', field, pack({
  key = q.key, model = q.model, state = q.state, node = q.node,
  until_s = time(q.now) + q.wait_s}))
call('ZADD', ns .. ':news', number, field)
if call('ZCARD', ns .. ':news') > REPORTS_MAX then
  call('HDEL', ns .. ':health', call('ZPOPMIN', ns .. ':news')[1])
end
return number
