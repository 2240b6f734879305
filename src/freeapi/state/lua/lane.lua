-- The fair queue over all gateways: who of those that wait for a model may be let in next.
-- policy/fairness.py's virtual token counter, kept in the store: per model a hash of callers
-- (counter, unsettled, spell, spare, waiters) and a sorted set of those who wait, by counter.
-- A waiter is in line only as long as its gateway asks again (it expires), so none stalls the rest.
-- Who isn't the first may pass only if what is free is enough for all before it and itself: so what
-- flows in is used whoever asks first, and a large request ahead is never starved.

local COUNTERS_MAX = 1000
local LANE_TTL_S = 3600
local WAITING_TTL_S = 60
-- A turn is this part of a token: counters of up to half a billion tokens keep it apart.
local TURNS = 2 ^ 24

local function lane_key(model) return ns .. ':lane:' .. model end
local function turn_key(model) return ns .. ':turn:' .. model end
local function idle_key(model) return ns .. ':idle:' .. model end

local function load_account(model, caller)
  local packed = call('HGET', lane_key(model), caller)
  return packed and unpack_(packed)
    or {counter = 0, unsettled = 0, spell = 0, spare = 0, waiters = {}}
end

local function keep_account(model, caller, a) call('HSET', lane_key(model), caller, pack(a)) end

-- Models in whose line nobody stands, as far as this call has looked.
local no_line = {}
local function has_line(model)
  if no_line[model] then return false end
  if call('EXISTS', turn_key(model)) == 1 then return true end
  no_line[model] = true
  return false
end

-- Of equal counters, who has been at this place longest comes first: else newcomers, who start at
-- the least counter, could pass someone for good.
local function place(model, caller, a)
  no_line[model] = nil
  local turn = call('HINCRBY', lane_key(model), '#turn', 1)
  call('ZADD', turn_key(model), a.counter + turn / TURNS, caller)
end

-- The last of a caller's requests has been served, or has left: its counter is kept for a while.
local function retire(model, caller, a, now)
  local idle = idle_key(model)
  call('ZREM', turn_key(model), caller)
  call('HSET', lane_key(model), '#last', string.format('%.0f', a.counter - a.unsettled))
  call('ZADD', idle, now, caller)
  call('EXPIRE', idle, LANE_TTL_S)
  if call('ZCARD', idle) > COUNTERS_MAX then
    call('HDEL', lane_key(model), call('ZPOPMIN', idle)[1])
  end
end

-- Those whose gateways no longer ask. Returns how many waiters are left.
local function prune(model, caller, a, now)
  if #a.waiters == 0 then return 0 end
  local live = {}
  for _, w in ipairs(a.waiters) do
    if w.until_s > now then live[#live + 1] = w end
  end
  if #live < #a.waiters then
    a.waiters = live
    if #live == 0 then retire(model, caller, a, now) end
    keep_account(model, caller, a)
  end
  return #live
end

-- The least settled counter of those who wait; of the last one who did where nobody does.
local function least(model, now)
  while true do
    local caller = call('ZRANGE', turn_key(model), 0, 0)[1]
    if not caller then return tonumber(call('HGET', lane_key(model), '#last') or 0) end
    local a = load_account(model, caller)
    if prune(model, caller, a, now) > 0 then return a.counter - a.unsettled end
    call('ZREM', turn_key(model), caller)
  end
end

local function find(a, ticket)
  for i, w in ipairs(a.waiters) do
    if w.ticket == ticket then return i end
  end
end

-- A request's place in line, renewed; false: the queue, or the caller's part of it, is full.
local function stand_in_line(w, model, caller, a, waiting_max, per_caller_max, now)
  local own = ns .. ':waiting:' .. caller
  local i = find(a, w.ticket)
  if not i then
    call('ZREMRANGEBYSCORE', ns .. ':waiting', '-inf', now)
    call('ZREMRANGEBYSCORE', own, '-inf', now)
    if call('ZCARD', ns .. ':waiting') >= waiting_max or call('ZCARD', own) >= per_caller_max then
      return false
    end
    if #a.waiters == 0 then
      local start = least(model, now)
      a.spell = a.spell + 1
      a.spare = max(a.counter - start, 0)
      a.counter = max(a.counter, start)
      place(model, caller, a)
      call('ZREM', idle_key(model), caller)
    end
    i = #a.waiters + 1
  end
  a.waiters[i] = w
  call('ZADD', ns .. ':waiting', w.until_s, w.ticket)
  call('ZADD', own, w.until_s, w.ticket)
  call('EXPIRE', own, WAITING_TTL_S)
  keep_account(model, caller, a)
  call('EXPIRE', lane_key(model), LANE_TTL_S)
  call('EXPIRE', turn_key(model), LANE_TTL_S)
  return true
end

-- Out of the line: served at a cost, or gone (cost 0).
local function leave_line(ticket, model, caller, a, cost, now)
  local i = find(a, ticket)
  if not i then return end
  table.remove(a.waiters, i)
  call('ZREM', ns .. ':waiting', ticket)
  call('ZREM', ns .. ':waiting:' .. caller, ticket)
  a.counter = a.counter + cost
  a.unsettled = a.unsettled + cost
  if #a.waiters == 0 then
    retire(model, caller, a, now)
  else
    place(model, caller, a)
  end
  keep_account(model, caller, a)
end

-- The model's meter as it would be if all who come before this request had been let in.
-- Stops where the request doesn't fit any more: O(those who can be let in now).
local function after_those_before(m, r, model, caller, a, ticket, tokens, now)
  local due = {max(m[1], now), max(m[2], now)}
  local function add(w)
    due[1] = due[1] + r.request_s
    due[2] = due[2] + w.tokens * r.token_s
  end
  for _, w in ipairs(a.waiters) do
    if w.ticket == ticket then break end
    add(w)
  end
  local start, page = 0, 16
  while admits(due, r, tokens, now) do
    local callers = call('ZRANGE', turn_key(model), start, start + page - 1)
    for _, other in ipairs(callers) do
      if other == caller then return due end
      local b = load_account(model, other)
      -- An expired one is taken out while we count: the pages after it begin one earlier.
      if prune(model, other, b, now) > 0 then
        add(b.waiters[1])
      else
        call('ZREM', turn_key(model), other) -- so that each round is over
        start = start - 1
      end
    end
    if #callers < page then return due end
    start = start + page
  end
  return due
end
