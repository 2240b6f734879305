-- A gateway has connected: from now on only calls of this connection are heard. Returns its epoch.
local q = unpack_(ARGV[1])
call('ZADD', ns .. ':alive', time(q.now) + q.alive_s, q.node)
local epoch = call('INCR', ns .. ':epoch')
call('HSET', ns .. ':nodes', q.node, epoch)
return epoch
