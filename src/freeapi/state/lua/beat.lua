-- A gateway lives. It renews itself, ends what dead ones held, as used in full, and hears what is
-- new of keys' health since the last number that it knows, and what is used of its models' limits.
-- Returns whether it was known still; of each model, seconds until its two buckets are full.
local REAPED_MAX = 200
local q = unpack_(ARGV[1])
local now = time(q.now)
local alive = ns .. ':alive'
local is_known = call('HGET', ns .. ':nodes', q.node) == tostring(q.epoch)
if is_known then call('ZADD', alive, now + q.alive_s, q.node) end

local dead = call('ZRANGEBYSCORE', alive, '-inf', now, 'LIMIT', 0, 1)[1]
if dead then
  call('HDEL', ns .. ':nodes', dead)
  local held, ended = call('HRANDFIELD', tickets_key(dead), REAPED_MAX, 'WITHVALUES'), {}
  for i = 1, #held, 2 do
    finish(held[i + 1], false, false, false, false, now)
    ended[#ended + 1] = held[i]
  end
  keep_changed(now)
  if #ended > 0 then call('HDEL', tickets_key(dead), unpack(ended)) end
  if #ended < REAPED_MAX then call('ZREM', alive, dead) end
end

local news, latest = {}, q.seen
local since = call('ZRANGEBYSCORE', ns .. ':news', '(' .. q.seen, '+inf', 'WITHSCORES')
for i = 1, #since, 2 do
  local report = call('HGET', ns .. ':health', since[i])
  latest = tonumber(since[i + 1])
  if report then
    local h = unpack_(report)
    if h.node ~= q.node then
      news[#news + 1] = {h.key, h.model, h.state, max(h.until_s - now, 0)}
    end
  end
end
local dues = {}
for i, model in ipairs(q.models) do
  local m = load_model(model)
  dues[i] = {max(m[1] - now, 0), max(m[2] - now, 0)}
end
return pack({is_known, latest, news, dues})
