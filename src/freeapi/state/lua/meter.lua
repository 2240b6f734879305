-- Two buckets and what is in flight: the arithmetic of policy/meter.py, line by line.
-- The tests compare the two on random sequences; whoever changes one changes both.
-- A meter is an array: 1 requests due, 2 tokens due (seconds), and while requests are in flight
-- 3 begun, 4 ended, 5 tokens held, 6 tokens due by ended requests alone. begun = 0: none in flight.

local ns = KEYS[1]
local WINDOW_S, BURST_PARTS, SLACK_S, DAY_S = 60, 6, 1e-6, 86400
-- Seconds since 2026-01-01T00:00Z rather than 1970, so that doubles resolve 1.5e-8 s.
local EPOCH_S = 1767225600
-- A caller's state outlives its day by this much, for requests that run over midnight.
local GRACE_S = 7200

local max, min, floor, huge = math.max, math.min, math.floor, math.huge
local pack, unpack_ = cmsgpack.pack, cmsgpack.unpack
local call = redis.call

-- The server's time, so that gateways' clocks don't matter; tests bring their own.
local function time(given)
  if given then return given end
  local t = call('TIME')
  return t[1] - EPOCH_S + t[2] / 1e6
end

-- Per minute; 0: no limit. Made once for each pair.
local made = {}
local function rates(rpm, tpm)
  local of_rpm = made[rpm]
  if not of_rpm then
    of_rpm = {}
    made[rpm] = of_rpm
  end
  local r = of_rpm[tpm]
  if r then return r end
  r = {request_s = 0, token_s = 0, requests_room_s = huge, tokens_room_s = huge, tpm_max = huge}
  if rpm > 0 then
    r.request_s = WINDOW_S / rpm
    r.requests_room_s = (max(rpm / BURST_PARTS, 1) - 1) * r.request_s + SLACK_S
  end
  if tpm > 0 then
    r.token_s = WINDOW_S / tpm
    r.tokens_room_s = WINDOW_S + SLACK_S
    r.tpm_max = tpm
  end
  of_rpm[tpm] = r
  return r
end

local function admits(m, r, tokens, now)
  return m[1] - now <= r.requests_room_s
    and m[2] - now + tokens * r.token_s <= r.tokens_room_s
    and tokens <= r.tpm_max
end

-- Returns the request's number, for cancel.
local function take(m, r, tokens, now)
  m[1] = max(m[1], now) + r.request_s
  local due = max(m[2], now)
  m[2] = due + tokens * r.token_s
  if m[3] == 0 then
    m[3], m[4], m[5], m[6] = 1, 0, tokens, due
  else
    m[3], m[5] = m[3] + 1, m[5] + tokens
  end
  return m[3]
end

local function settle(m, r, reserved, used, now)
  if m[3] == 0 then return end -- the server has lost its state since
  local due = m[2]
  if used > reserved then due = max(due, now) + (used - reserved) * r.token_s end
  local ended_due = max(m[6], now) + used * r.token_s
  m[4] = m[4] + 1
  if m[4] == m[3] then
    m[2] = min(due, ended_due)
    m[3], m[4], m[5], m[6] = 0, 0, 0, 0
    return
  end
  m[5], m[6] = m[5] - reserved, ended_due
  m[2] = min(due, ended_due + m[5] * r.token_s)
end

local function cancel(m, r, reserved, number, now)
  if m[3] == 0 then return end
  local left = m[1] - now - (m[3] - number) * r.request_s
  m[1] = m[1] - min(max(left, 0), r.request_s)
  settle(m, r, reserved, 0, now)
end
