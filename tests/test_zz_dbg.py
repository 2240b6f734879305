import time, asyncio
from tests.promises.test_fairness import *
from tests.promises import test_fairness as tf
async def test_dbg(upstream, start_gateway):
    asyncio.get_running_loop().set_debug(False)
    gateway = await start_gateway(f"rpm = {RPM}\n", **SETTINGS)
    t=time.monotonic()
    await use_up(gateway, upstream)
    print("used up", time.monotonic()-t)
    contest = Contest(gateway.port)
    flood, *others = CALLERS
    t0=time.monotonic(); log=[]
    async def _ask(address):
        async with caller_from(address, gateway.port) as c:
            while True:
                s=time.monotonic()
                a=await c.ask(chat())
                log.append((time.monotonic()-t0, address[-2:], a.status, time.monotonic()-s, a.header("retry-after-ms")))
                async with contest._news:
                    if a.status==200:
                        contest._served[address]+=1
                        contest._news.notify_all()
                    else:
                        await contest._news.wait()
    contest._ask=_ask
    async with contest.between({flood: 50, **dict.fromkeys(others, 1)}):
        shares = await contest.shares()
        print(shares, time.monotonic()-t0)
    from collections import Counter
    for lo in range(0,40):
        w=[x for x in log if lo*.25<=x[0]<(lo+1)*.25]
        if w: print(lo*.25, "ok", Counter(x[1] for x in w if x[2]==200), "refused", Counter(x[1] for x in w if x[2]!=200), max(x[3] for x in w))
    open("/tmp/log.txt","w").write("\n".join(map(str,log)))
