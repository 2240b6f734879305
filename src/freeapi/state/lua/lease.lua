-- Money leased to a gateway: its slices of everyone's caps, as absolute sums, so that an order may be
-- repeated. All orders or none; in whole nano-dollars, exact up to nine million dollars.
-- A period's hash holds, by scope, what is leased to all gateways that ever were, and by
-- "scope|gateway" one's part and how much of it requests under way have reserved. A gateway that dies
-- leaves its part leased, that is, spent.
-- Answers, for each order, what the gateway has now, what the others have, and how much of that is
-- reserved by those heard lately, so may come back.

local HEARD_S = 60
local KEPT_S = 40 * DAY_S
local q = unpack_(ARGV[1])
local now = time(q.now)

-- A connection that was given up may deliver its orders after those of the next one.
local number_key = ns .. ':orders:' .. q.node
if tonumber(call('GET', number_key) or 0) >= q.number then return pack({}) end
call('SET', number_key, q.number, 'EX', 3 * DAY_S)

local function whole(n) return string.format('%.0f', n) end

local function reserved_by_others(key, scope, mine)
  local sum, all = 0, call('HGETALL', key)
  for i = 1, #all, 2 do
    if all[i] ~= mine and string.sub(all[i], 1, #scope + 1) == scope .. '|' then
      local part = unpack_(all[i + 1])
      if now - part[3] < HEARD_S then sum = sum + part[2] end
    end
  end
  return sum
end

local answers = {}
for i, order in ipairs(q.orders) do
  local key = ns .. ':money:' .. order.period
  local mine = order.scope .. '|' .. q.node
  local packed = call('HGET', key, mine)
  local part = packed and unpack_(packed) or {0, 0, 0}
  local others = tonumber(call('HGET', key, order.scope) or 0) - part[1]
  -- What the gateway may have reserved already stays; a server that lost it learns of it here.
  local granted = max(order.kept, min(order.wanted, order.cap - others))
  local pending = 0
  if granted < order.wanted then pending = reserved_by_others(key, order.scope, mine) end
  call('HSET', key, order.scope, whole(others + granted))
  if granted == 0 and order.reserved == 0 then
    call('HDEL', key, mine)
  else
    call('HSET', key, mine, pack({granted, order.reserved, now}))
  end
  call('EXPIRE', key, KEPT_S)
  answers[i] = {granted, others, pending}
end
return pack(answers)
