"""Checks that several nodes with NATS between them are one server for clients, also while nodes and NATS servers die or stand still.

Usage: cluster.py SIGNALPOST [--nats PATH] [--servers 1|3] [--users N] [--events N] [--faults N] [--seed S]
"""

import argparse
import asyncio
import json
import pathlib
import random
import signal
import sys
import tempfile
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import policies
from parts import BASE, Device, Failed, Nats, Node, Producer, check, missing, ready, until

NODES = 3


class Run:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.random = random.Random(arguments.seed)
        self.nats = Nats(arguments.nats, folder, arguments.servers)
        # So small that snapshots are written all the time.
        settings = {"CLUSTER_SNAPSHOT_BYTES": 500_000, "CLUSTER_CUT_AFTER_MS": 2_000}
        settings |= {"SOCKETS_PER_USER_MAX": 2, "MAILBOXES_MESSAGES_MAX": 100_000, "MAILBOXES_BYTES_MAX": 100_000_000}
        self.nodes = [Node(arguments.signalpost, folder, index, self.nats, settings) for index in range(NODES)]

    async def start(self):
        self.nats.start_all()
        for node in self.nodes:
            node.start()
        print(f"ready after {await ready(self.nodes):.1f} s", flush=True)

    def end(self):
        for node in self.nodes:
            node.end()
        self.nats.end()

    async def leader(self):
        """Returns the node that leads, as all that are there agree."""
        found = []

        async def agree():
            names = set()
            for node in self.nodes:
                try:
                    names.add(await node.leader())
                except (OSError, EOFError, Failed, TimeoutError):
                    return False
            found[:] = [node for node in self.nodes if node.name in names]
            return len(names) == 1 and len(found) == 1

        await until("all nodes name the same leader", agree)
        return found[0]

    async def all_came(self, users, producers, devices):
        async def are_there():
            return missing(users, producers, devices) == 0

        try:
            await until("all messages have come", are_there)
        except Failed:
            check(users, producers, devices)
            raise


async def one_server(run):
    """What a client or an operator asks of one node holds on all."""
    leader = await run.leader()
    others = [node for node in run.nodes if node is not leader]

    def socket(node, user):
        return connect(f"ws://127.0.0.1:{node.port}{BASE}/ws/{user}", subprotocols=["signalpost.v1"], proxy=None)

    async def message(socket, wanted):
        """Returns the next message of this type."""
        async with asyncio.timeout(20):
            while True:
                frame = json.loads(await socket.recv())
                if frame["type"] == "message" and frame["data"].get("type") == wanted:
                    return frame

    async def publish(node, id, type, data):
        event = {"specversion": "1.0", "id": id, "source": "/test", "type": type, "data": data}
        status, text = await node.request("POST", f"{BASE}/events", event, [("Content-Type", "application/cloudevents+json")])
        if status != 202:
            raise Failed(f"{type} at {node.name} is answered with {status}: {text}")
        return json.loads(text)

    async with socket(others[0], "ann") as phone, socket(others[1], "ann") as tablet, socket(leader, "bob") as bob:
        hellos = [json.loads(await one.recv()) for one in (phone, tablet, bob)]
        if hellos[0]["data"]["epoch"] != hellos[1]["data"]["epoch"]:
            raise Failed(f"two devices of a user have different epochs: {hellos}")
        receipt = await publish(others[0], "m1", "pooling.match.found", {"request_id": 1, "rider_id": "ann", "driver_id": "bob", "pool_id": 7})
        if receipt["recipients"] != 2:
            raise Failed(f"a match reaches {receipt}")
        seen = [await message(one, "pooling_match") for one in (phone, tablet, bob)]
        if seen[0]["seq"] != seen[1]["seq"]:
            raise Failed(f"a message has two seqs: {seen}")
        # A client of one node, a policy of the leader, and readers of all.
        await phone.send(json.dumps({"type": "message", "id": "c1", "data": {"type": "chat", "pool_id": 7, "text": "here"}}))
        for one in (tablet, bob):
            said = await message(one, "chat_message")
            if said["data"]["text"] != "here":
                raise Failed(f"another chat: {said}")
        await bob.send(json.dumps({"type": "message", "id": "c2", "data": {"type": "chat", "pool_id": 8, "text": "no member"}}))
        async with asyncio.timeout(20):
            while json.loads(await bob.recv())["type"] != "error":
                pass
        for node in run.nodes:
            group = await node.get(f"{BASE}/groups/pool:7")
            if sorted(group["members"]) != ["ann", "bob"]:
                raise Failed(f"the group at {node.name}: {group}")
            presence = await node.get(f"{BASE}/users/ann")
            if len(presence["sessions"]) != 2 or presence["mailbox"]["epoch"] != hellos[0]["data"]["epoch"]:
                raise Failed(f"presence at {node.name}: {presence}")
            told = await node.get(f"{BASE}/receipts/m1?source=/test")
            if sum(told["states"].values()) != 2:
                raise Failed(f"the receipt at {node.name}: {told}")
            again = await publish(node, "m1", "pooling.match.found", {"request_id": 1, "rider_id": "ann", "driver_id": "bob", "pool_id": 7})
            if not again["duplicate"]:
                raise Failed(f"an event is published twice, at {node.name}: {again}")

            async def are_known(node=node):
                nodes = (await node.get(f"{BASE}/cluster"))["nodes"]
                return len(nodes) == NODES and sum(one["leads"] for one in nodes) == 1 and len({one["policies"] for one in nodes}) == 1

            # They say it each second.
            await until(f"{node.name} knows all nodes", are_known)
        # A third device replaces the oldest, wherever that is.
        async with socket(leader, "ann") as third:
            await third.recv()
            try:
                async with asyncio.timeout(20):
                    while True:
                        await phone.recv()
            except ConnectionClosed as closed:
                if closed.rcvd is None or closed.rcvd.code != 4202:
                    raise Failed(f"the oldest device is closed with {closed}")
            status, text = await others[0].request("DELETE", f"{BASE}/users/ann/sessions")
            if (status, json.loads(text)) != (200, {"ended": 2}):
                raise Failed(f"sessions of all nodes are ended from one: {status} {text}")
            for one in (tablet, third):
                try:
                    async with asyncio.timeout(20):
                        while True:
                            await one.recv()
                except ConnectionClosed as closed:
                    if closed.rcvd is None or closed.rcvd.code != 4200:
                        raise Failed(f"a session that an operator ends is closed with {closed}")

        async def is_away():
            return all([not (await node.get(f"{BASE}/users/ann"))["online"] for node in run.nodes])

        await until("nobody takes her to be online", is_away)
    print("one server: sessions, policies, groups, presence, receipts and operators hold on all nodes", flush=True)


def load(run, prefix, users):
    rng = random.Random(run.random.random())
    devices = []
    for user in users:
        first, second = rng.sample(range(NODES), 2)
        devices += [Device(user, run.nodes, first, rng), Device(user, run.nodes, second, rng)]
    producers = [Producer(f"{prefix}{number}", run.nodes, number % NODES, users, rng) for number in range(2 * NODES)]
    return devices, producers


async def greeted(devices):
    """Waits until all have a place to go on from: a device that comes later is not sent what another one of its user has already acked."""
    async with asyncio.timeout(300):
        await asyncio.gather(*(device.greeted.wait() for device in devices))


async def many(run):
    """Every message once to each device of a user, in the same order, and exact counts."""
    users = [f"u{number}" for number in range(run.arguments.users)]
    devices, producers = load(run, "p", users)
    began = time.monotonic()
    tasks = [asyncio.create_task(device.run()) for device in devices]
    await greeted(devices)
    connected = time.monotonic() - began
    began = time.monotonic()
    each = -(-run.arguments.events // len(producers))
    await asyncio.gather(*(producer.run(each) for producer in producers))
    took = time.monotonic() - began
    await run.all_came(users, producers, devices)
    check(users, producers, devices)
    latencies = sorted(latency for producer in producers for latency in producer.latencies)
    p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
    await stop(tasks)
    print(
        f"many: {len(devices)} devices in {connected:.1f} s; {len(latencies)} events, {len(latencies) / took:.0f}/s; "
        f"answered after {p50:.1f} ms (p50), {p99:.1f} ms (p99); each message once to each device, in one order",
        flush=True,
    )


async def stop(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def faults(run):
    """Nothing that was answered is lost, and no order changes, while nodes and NATS servers die or stand still."""
    users = [f"f{number}" for number in range(min(run.arguments.users, 60))]
    devices, producers = load(run, "q", users)
    tasks = [asyncio.create_task(device.run()) for device in devices]
    await greeted(devices)
    over = asyncio.Event()
    producing = [asyncio.create_task(producer.run(None, over)) for producer in producers]
    kinds = [kill_leader, kill_follower, stop_leader, stop_follower, kill_nats, stop_nats, restart_leader]
    try:
        for number in range(run.arguments.faults):
            await asyncio.sleep(1)
            kind = kinds[number % len(kinds)] if number < len(kinds) else run.random.choice(kinds)
            began, before = time.monotonic(), sum(len(producer.sent) for producer in producers)
            text = await kind(run)
            await ready(run.nodes)
            settled = time.monotonic() - began
            failed = [task for task in producing if task.done() and task.exception()]
            if failed:
                raise failed[0].exception()
            for device in devices:
                if device.failure:
                    raise device.failure
            sent = sum(len(producer.sent) for producer in producers) - before
            print(f"fault {number}: {text}; all ready after {settled:.1f} s, {sent} messages meanwhile", flush=True)
        await asyncio.sleep(1)
        over.set()
        async with asyncio.timeout(120):
            await asyncio.gather(*producing)
        await run.all_came(users, producers, devices)
        check(users, producers, devices)
    finally:
        await stop(tasks + producing)
    logs = "".join(node.log.read_text() for node in run.nodes)
    for said in ("a snapshot is written", "the stream is cut off", "a snapshot is read", "components that no node needs are removed"):
        if said not in logs:
            raise Failed(f"no node says: {said}")
    sent, again = sum(len(producer.sent) for producer in producers), sum(producer.again for producer in producers)
    refused, connects = sum(producer.refused for producer in producers), sum(device.connects for device in devices)
    print(
        f"faults: {sent} messages answered, {again} sent again without an answer, {refused} times 503; "
        f"{len(devices)} devices connected {connects} times; nothing lost, nothing twice, one order",
        flush=True,
    )


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


async def stop_follower(run):
    leader = await run.leader()
    node = run.random.choice([node for node in run.nodes if node is not leader])
    node.signal(signal.SIGSTOP)
    await asyncio.sleep(8)
    node.signal(signal.SIGCONT)
    await asyncio.sleep(1)
    return "a follower stands still for 8 s"


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
    if leader.process.wait(60) != 0:
        raise Failed(f"a node that is told to stop ends with {leader.process.returncode}")
    leader.start()
    return f"the leader is restarted: another leads after {took:.2f} s"


async def main(arguments):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cluster-"))
    print(f"seed {arguments.seed}; NATS {arguments.nats}, {arguments.servers} of them; logs in {folder}", flush=True)
    run = Run(arguments, folder)
    try:
        await run.start()
        await one_server(run)
        await policies.change(run)
        await policies.refuse(run)
        if arguments.events:
            await many(run)
        if arguments.faults:
            await faults(run)
    except Failed as failed:
        print(f"failed: {failed}\nseed {arguments.seed}, logs in {folder}", file=sys.stderr)
        return 1
    finally:
        run.end()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("signalpost")
    parser.add_argument("--nats", default="nats-server")
    parser.add_argument("--servers", type=int, choices=(1, 3), default=1)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--events", type=int, default=3_000)
    parser.add_argument("--faults", type=int, default=7)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    sys.exit(asyncio.run(main(parser.parse_args())))
