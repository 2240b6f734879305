-- What one turn of a gateway's event loop has brought, in its order: questions (admit.lua), and ends:
-- what a request used in place of what it reserved, or that nobody waits for it any more. Any further
-- end of the same request does nothing. Returns the answers to the questions.
local given, node, epoch, waiting_max, per_caller_max, items = unpack(unpack_(ARGV[1]))
local now = time(given)
-- Of a connection that was given up: its questions may arrive after those of the next one.
local is_known = call('HGET', ns .. ':nodes', node) == tostring(epoch)

-- The tickets that end here, by their numbers; false once they have, or where there is none.
local tickets, ended = {}, {}
for _, item in ipairs(items) do
  if item[1] then ended[#ended + 1] = item[2] end
end
if #ended > 0 then
  local contents = call('HMGET', tickets_key(node), unpack(ended))
  for i, number in ipairs(ended) do tickets[number] = contents[i] end
end

local answers, begun = {}, {}
for _, item in ipairs(items) do
  local is_end, number = item[1], item[2]
  if not is_end then
    local ticket
    if is_known then
      answers[#answers + 1], ticket = admit(item, node, waiting_max, per_caller_max, now)
    else
      answers[#answers + 1] = {UNKNOWN_NODE}
    end
    if ticket then
      tickets[number] = ticket
      begun[#begun + 1] = number
      begun[#begun + 1] = ticket
    end
  else
    local _, _, is_cancelled, tokens, nanousd, cost, model, caller = unpack(item)
    if model then
      leave_line(place_of(node, number), model, caller, load_account(model, caller), 0, now)
    end
    if tickets[number] then
      finish(tickets[number], is_cancelled, tokens, nanousd, cost, now)
      tickets[number] = false
    end
  end
end

-- A server without memory refuses the first of these, before anything is lost.
keep_changed(now)
if #begun > 0 then call('HSET', tickets_key(node), unpack(begun)) end
if #ended > 0 then call('HDEL', tickets_key(node), unpack(ended)) end
return pack(answers)
