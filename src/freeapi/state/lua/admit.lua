-- May a request be let in: all that it needs of its caller, its model and its share, or nothing.
-- The decision of policy/limits.py. The answer is an array: the verdict, seconds until the caller's
-- two buckets are full, and but for a grant its requests in flight, seconds until its day ends (0:
-- that limit holds), the same two of the model, a hint when to ask again, and the caller's
-- nano-dollars spent and held. A grant brings the contents of its ticket besides.

local GRANTED, REFUSED, WAITING, FULL, POOR, UNKNOWN_NODE = 0, 1, 2, 3, 4, 5

local function answer(c, m, verdict, day_wait_s, hint_s, now)
  return {verdict, c[1] - now, c[2] - now, c[3] - c[4], day_wait_s,
          m[1] - now, m[2] - now, hint_s, c[SPENT], c[HELD]}
end

local function admit(question, node, waiting_max, per_caller_max, now)
  local _, number, caller, model, rpm, tpm, rpd, concurrency, mrpm, mtpm, tokens, cost, nanousd,
    share, ttl_s, asked = unpack(question)
  local day = floor(now / DAY_S)
  local c, m = load_caller(caller, day), load_model(model)
  local r, mr = rates(rpm, tpm), rates(mrpm, mtpm)

  -- 1. What is the caller's own; one who waits and is over it by now leaves the line.
  local verdict, day_wait_s = nil, 0
  if rpd > 0 and c[COUNT] >= rpd then verdict, day_wait_s = REFUSED, (day + 1) * DAY_S - now end
  if (concurrency > 0 and c[3] - c[4] >= concurrency) or not admits(c, r, tokens, now)
    or tokens > mr.tpm_max then verdict = REFUSED end
  -- What costs nothing needs no share of the money, though more than that should be spent.
  if not verdict and share >= 0 and nanousd > 0 and c[SPENT] + c[HELD] + nanousd > share then
    verdict, day_wait_s = POOR, (day + 1) * DAY_S - now
  end
  if verdict then
    if asked > 0 then
      leave_line(place_of(node, number), model, caller, load_account(model, caller), 0, now)
    end
    return answer(c, m, verdict, day_wait_s, 0, now)
  end

  -- 2. What all share. A request may not pass those who wait already.
  local spell = 0
  local is_short = not admits(m, mr, tokens, now)
  if ttl_s == 0 then
    if is_short then return answer(c, m, REFUSED, 0, 0, now) end
  elseif is_short or has_line(model) then
    local a = load_account(model, caller)
    prune(model, caller, a, now)
    local ticket = place_of(node, number)
    local waiter = {ticket = ticket, tokens = tokens, until_s = now + ttl_s}
    if not stand_in_line(waiter, model, caller, a, waiting_max, per_caller_max, now) then
      return answer(c, m, FULL, 0, 0, now)
    end
    local due = after_those_before(m, mr, model, caller, a, ticket, tokens, now)
    if not admits(due, mr, tokens, now) then
      return answer(c, m, WAITING, 0, max(due[1] - now - mr.requests_room_s,
                                          due[2] - now + tokens * mr.token_s - mr.tokens_room_s),
                    now)
    end
    spell = a.spell
    leave_line(ticket, model, caller, a, cost, now)
  end

  -- 3. Take all of it.
  if rpd > 0 then c[COUNT] = c[COUNT] + 1 end
  c[HELD] = c[HELD] + nanousd
  local taken, mtaken = take(c, r, tokens, now), take(m, mr, tokens, now)
  change(caller, c, model, m)
  return {GRANTED, c[1] - now, c[2] - now},
    pack({caller, model, tokens, taken, mtaken, day, nanousd, rpm, tpm, mrpm, mtpm, rpd, cost, spell})
end
