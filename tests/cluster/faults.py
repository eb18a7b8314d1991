"""What fails, and what is expected of the nodes meanwhile."""

import asyncio
import signal

from parts import Failed, until


async def another_leads(run, before, deadline):
    """Waits until another node than this one leads."""
    others = [node for node in run.nodes if node is not before]

    async def leads():
        try:
            names = {await node.leader() for node in others}
        except (OSError, EOFError, TimeoutError):
            return False
        return len(names) == 1 and names.isdisjoint({None, before.name})

    return await until(f"another node than {before.name} leads", leads, deadline)


async def kill_leader(run):
    leader = await run.leader()
    leader.kill()
    took = await another_leads(run, leader, 20)
    leader.start()
    return f"the leader is killed: another leads after {took:.1f} s"


async def kill_follower(run):
    leader = await run.leader()
    node = run.random.choice([node for node in run.nodes if node is not leader])
    node.kill()
    await asyncio.sleep(1)
    node.start()
    return "a follower is killed"


async def stop_leader(run):
    leader = await run.leader()
    leader.signal(signal.SIGSTOP)
    try:
        took = await another_leads(run, leader, 30)
        await asyncio.sleep(2)
    finally:
        leader.signal(signal.SIGCONT)
    await asyncio.sleep(1)
    return f"the leader stands still: another leads after {took:.1f} s; it goes on"


async def follower_stands_still(run, seconds):
    leader = await run.leader()
    node = run.random.choice([node for node in run.nodes if node is not leader])
    node.signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    node.signal(signal.SIGCONT)
    await asyncio.sleep(1)
    return f"a follower stands still for {seconds} s"


async def stop_follower(run):
    return await follower_stands_still(run, 8)


async def kill_nats(run):
    index = run.random.randrange(run.nats.count)
    run.nats.servers[index].kill()
    await asyncio.sleep(2)
    run.nats.start(index)
    await asyncio.sleep(1)
    return f"the NATS server {index} is killed and started again"


async def stop_nats(run):
    index = run.random.randrange(run.nats.count)
    run.nats.servers[index].signal(signal.SIGSTOP)
    await asyncio.sleep(5)
    run.nats.servers[index].signal(signal.SIGCONT)
    await asyncio.sleep(1)
    return f"the NATS server {index} stands still for 5 s"


async def restart_leader(run):
    leader = await run.leader()
    leader.signal(signal.SIGTERM)
    took = await another_leads(run, leader, 10)
    leader.has_stopped()
    leader.start()
    return f"the leader is restarted: another leads after {took:.2f} s"


async def stop_for_long(run):
    """Longer than a node may be silent or without NATS, and than the stream is kept."""
    return await follower_stands_still(run, 30)


async def cut_off_leader(run):
    leader = await run.leader()
    leader.proxy.cut()
    took = await another_leads(run, leader, 20)
    await asyncio.sleep(max(0, 10 - took))
    leader.proxy.join()
    await asyncio.sleep(1)
    return f"the leader is cut off for 10 s: another leads after {took:.1f} s"


async def stall_follower(run):
    leader = await run.leader()
    node = run.random.choice([node for node in run.nodes if node is not leader])
    node.proxy.stall()
    await asyncio.sleep(10)
    node.proxy.join()
    await asyncio.sleep(1)
    return "nothing passes between a follower and NATS for 10 s, and then all of it"


async def half_open_leader(run):
    leader = await run.leader()
    leader.proxy.half_open()
    # It notices by NATS' silence, or by being replaced. Which node leads then does not matter.
    await asyncio.sleep(10)
    return "NATS' end of the leader's connection is gone, and the leader's is not"


async def deafen_leader(run):
    leader = await run.leader()
    leader.proxy.deafen()
    took = await another_leads(run, leader, 30)
    await asyncio.sleep(max(0, 10 - took))
    leader.proxy.join()
    await asyncio.sleep(1)
    return f"the leader hears nothing for 10 s, while it is heard: another leads after {took:.1f} s"


OF_NODES = [kill_leader, kill_follower, stop_leader, stop_follower, kill_nats, stop_nats, restart_leader]
OF_NETWORK = [cut_off_leader, stall_follower, half_open_leader, deafen_leader]
KINDS = {"nodes": OF_NODES, "network": OF_NETWORK, "all": [*OF_NODES, *OF_NETWORK, stop_for_long]}
