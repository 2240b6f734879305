-- What each granted request holds, in a hash for each gateway, until it is settled once.
-- A ticket is its own proof: to settle one that isn't there does nothing, so that a gateway may
-- repeat what it isn't sure of, and anyone may settle those of a gateway that died.
-- A caller is an array, too: its meter, then the day, and on it requests, nano-dollars spent and held.

local DAY, COUNT, SPENT, HELD = 7, 8, 9, 10

local function caller_key(caller) return ns .. ':caller:' .. caller end
local function model_key(model) return ns .. ':model:' .. model end
local function tickets_key(node) return ns .. ':tickets:' .. node end
-- Tickets are numbered by their gateway; in a line they stand beside those of others.
local function place_of(node, number) return node .. ':' .. number end

-- What is read stays here for the rest of the call, and what has changed is written at its end:
-- however many requests a batch brings, each caller and model is read and written once.
local callers, models, changed_callers, changed_models = {}, {}, {}, {}

local function load_caller(caller, day)
  local c = callers[caller]
  if not c then
    local packed = call('GET', caller_key(caller))
    c = packed and unpack_(packed) or {0, 0, 0, 0, 0, 0, day, 0, 0, 0}
    callers[caller] = c
  end
  if c[DAY] ~= day then c[DAY], c[COUNT], c[SPENT], c[HELD] = day, 0, 0, 0 end
  return c
end

local function load_model(model)
  local m = models[model]
  if not m then
    local packed = call('GET', model_key(model))
    m = packed and unpack_(packed) or {0, 0, 0, 0, 0, 0}
    models[model] = m
  end
  return m
end

local function change(caller, c, model, m)
  changed_callers[caller], changed_models[model] = c, m
end

local function keep_changed(now)
  for caller, c in pairs(changed_callers) do
    local ttl_s = (c[DAY] + 1) * DAY_S - now + GRACE_S
    call('SET', caller_key(caller), pack(c), 'EX', floor(ttl_s) + 1)
  end
  for model, m in pairs(changed_models) do
    call('SET', model_key(model), pack(m), 'EX', 2 * DAY_S)
  end
end

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

-- How a ticket ends, which is then to be deleted: tokens, nano-dollars and cost are what it used, or
-- false where nobody knows.
local function finish(packed, is_cancelled, tokens, nanousd, cost, now)
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
  change(caller, c, model, m)
  if spell > 0 then correct(model, caller, worst, spell, cost or worst) end
end
