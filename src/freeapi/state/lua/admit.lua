-- May a request be let in: all that it needs of its caller, its model and its share, or nothing.
-- The decision of policy/limits.py. The answer is an array: the verdict, seconds until the caller's
-- two buckets are full, its requests in flight, seconds until its day ends (0: that limit holds),
-- the same two of the model, a hint when to ask again, and the caller's nano-dollars spent and held.

local GRANTED, REFUSED, WAITING, FULL, POOR, UNKNOWN_NODE = 0, 1, 2, 3, 4, 5
local given, node, epoch, ticket, caller, model, rpm, tpm, rpd, concurrency, mrpm, mtpm, tokens,
  cost, nanousd, share, ttl_s, asked, waiting_max, per_caller_max = unpack(unpack_(ARGV[1]))
local now = time(given)

-- Of a connection that was given up: its calls may arrive after those of the next one.
if call('HGET', ns .. ':nodes', node) ~= tostring(epoch) then return pack({UNKNOWN_NODE}) end

local day = floor(now / DAY_S)
local c, m = load_caller(caller, day), load_model(model)
local r, mr = rates(rpm, tpm), rates(mrpm, mtpm)
local flight = c[3] - c[4]

local function answer(verdict, day_wait_s, hint_s)
  return pack({verdict, c[1] - now, c[2] - now, flight, day_wait_s,
               m[1] - now, m[2] - now, hint_s, c[SPENT], c[HELD]})
end

-- 1. What is the caller's own; one who waits and is over it by now leaves the line.
local verdict, day_wait_s = nil, 0
if rpd > 0 and c[COUNT] >= rpd then verdict, day_wait_s = REFUSED, (day + 1) * DAY_S - now end
if (concurrency > 0 and flight >= concurrency) or not admits(c, r, tokens, now)
  or tokens > mr.tpm_max then verdict = REFUSED end
-- What costs nothing needs no share of the money, though more than that should be spent.
if not verdict and share >= 0 and nanousd > 0 and c[SPENT] + c[HELD] + nanousd > share then
  verdict, day_wait_s = POOR, (day + 1) * DAY_S - now
end
if verdict then
  if asked > 0 then leave_line(ticket, model, caller, load_account(model, caller), 0, now) end
  return answer(verdict, day_wait_s, 0)
end

-- 2. What all share. A request may not pass those who wait already.
local spell = 0
local is_short = not admits(m, mr, tokens, now)
if ttl_s == 0 then
  if is_short then return answer(REFUSED, 0, 0) end
elseif is_short or call('EXISTS', turn_key(model)) == 1 then
  local a = load_account(model, caller)
  prune(model, caller, a, now)
  local place = {ticket = ticket, tokens = tokens, until_s = now + ttl_s}
  if not stand_in_line(place, model, caller, a, waiting_max, per_caller_max, now) then
    return answer(FULL, 0, 0)
  end
  local due = after_those_before(m, mr, model, caller, a, ticket, tokens, now)
  if not admits(due, mr, tokens, now) then
    return answer(WAITING, 0, max(due[1] - now - mr.requests_room_s,
                                  due[2] - now + tokens * mr.token_s - mr.tokens_room_s))
  end
  spell = a.spell
  leave_line(ticket, model, caller, a, cost, now)
end

-- 3. Take all of it.
if rpd > 0 then c[COUNT] = c[COUNT] + 1 end
c[HELD] = c[HELD] + nanousd
local number, mnumber = take(c, r, tokens, now), take(m, mr, tokens, now)
flight = flight + 1
keep_caller(caller, c, now)
keep_model(model, m)
call('HSET', tickets_key(node), ticket, pack({caller, model, tokens, number, mnumber, day, nanousd,
                                              rpm, tpm, mrpm, mtpm, rpd, cost, spell}))
return answer(GRANTED, 0, 0)
