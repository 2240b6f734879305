-- What each granted request holds, in a hash for each gateway, until it is settled once.
-- A ticket is its own proof: to settle one that isn't there does nothing, so that a gateway may
-- repeat what it isn't sure of, and anyone may settle those of a gateway that died.
-- A caller is an array, too: its meter, then the day, and on it requests, nano-dollars spent and held.

local DAY, COUNT, SPENT, HELD = 7, 8, 9, 10

local function caller_key(caller) return ns .. ':caller:' .. caller end
local function model_key(model) return ns .. ':model:' .. model end
local function tickets_key(node) return ns .. ':tickets:' .. node end

local function load_caller(caller, day)
  local packed = call('GET', caller_key(caller))
  if not packed then return {0, 0, 0, 0, 0, 0, day, 0, 0, 0} end
  local c = unpack_(packed)
  if c[DAY] ~= day then c[DAY], c[COUNT], c[SPENT], c[HELD] = day, 0, 0, 0 end
  return c
end

local function keep_caller(caller, c, now)
  local ttl_s = (c[DAY] + 1) * DAY_S - now + GRACE_S
  call('SET', caller_key(caller), pack(c), 'EX', floor(ttl_s) + 1)
end

local function load_model(model)
  local packed = call('GET', model_key(model))
  return packed and unpack_(packed) or {0, 0, 0, 0, 0, 0}
end

local function keep_model(model, m) call('SET', model_key(model), pack(m), 'EX', 2 * DAY_S) end

-- The lane's counter of a caller whose request had waited: what it cost in place of its worst case.
-- Source: policy/fairness.py, _Lane.correct.
local function correct(model, caller, cost, spell, used_cost)
  local packed = call('HGET', lane_key(model), caller)
  if not packed then return end
  local a = unpack_(packed)
  a.unsettled = a.unsettled - cost
  local change = used_cost - cost
  if change < 0 and spell ~= a.spell then
    change = max(change, -a.spare)
    a.spare = a.spare + change
  end
  a.counter = a.counter + change
  keep_account(model, caller, a)
  if #a.waiters > 0 then place(model, caller, a) end
end

-- How a ticket ends: tokens, nano-dollars and cost are what it used, or false where nobody knows.
-- Returns whether it was open.
local function finish(node, ticket, is_cancelled, tokens, nanousd, cost, now)
  local packed = call('HGET', tickets_key(node), ticket)
  if not packed then return false end
  call('HDEL', tickets_key(node), ticket)
  local caller, model, reserved, number, mnumber, day, held, rpm, tpm, mrpm, mtpm, rpd, worst, spell =
    unpack(unpack_(packed))
  local c, m = load_caller(caller, floor(now / DAY_S)), load_model(model)
  local r, mr = rates(rpm, tpm), rates(mrpm, mtpm)
  if is_cancelled then
    cancel(c, r, reserved, number, now)
    cancel(m, mr, reserved, mnumber, now)
    if day == c[DAY] and rpd > 0 and c[COUNT] > 0 then c[COUNT] = c[COUNT] - 1 end
    nanousd, cost = 0, 0
  else
    settle(c, r, reserved, tokens or reserved, now)
    settle(m, mr, reserved, tokens or reserved, now)
  end
  if day == c[DAY] then
    c[HELD] = max(c[HELD] - held, 0)
    c[SPENT] = c[SPENT] + (nanousd or held)
  end
  keep_caller(caller, c, now)
  keep_model(model, m)
  if spell > 0 then correct(model, caller, worst, spell, cost or worst) end
  return true
end
