-- A request is over: what it used in place of what it reserved. Any further call does nothing.
local given, node, ticket, is_cancelled, tokens, nanousd, cost, is_leaving, model, caller =
  unpack(unpack_(ARGV[1]))
local now = time(given)
if is_leaving then leave_line(ticket, model, caller, load_account(model, caller), 0, now) end
return finish(node, ticket, is_cancelled, tokens, nanousd, cost, now) and 1 or 0
