"""Checks that several nodes with NATS between them are one server for clients, also while nodes and NATS servers die or stand still.

Usage: cluster.py SIGNALPOST COUNTER [--nats PATH] [--servers 1|3] [--users N] [--events N] [--counts N] [--storm N] [--faults N] [--kinds all|nodes|network] [--seed S]
"""

import argparse
import asyncio
import json
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import future
import policies
from faults import KINDS
from parts import BASE, PLUGINS, Connection, Device, Failed, Nats, Node, Producer, check, missing, ready, until

NODES = 3

# A policy that counts what it is asked: one above the limit is refused.
CONFIG = """
[policies.counter]
enabled = {enabled}
grants = ["state"]
settings = {{ notices_max = {counts}, window_ms = 3600000 }}
"""


class Run:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.random = random.Random(arguments.seed)
        plugins = folder / "plugins"
        plugins.mkdir()
        for plugin in PLUGINS.glob("*.wasm"):
            shutil.copy(plugin, plugins)
        shutil.copy(arguments.counter, plugins / "counter.wasm")
        self.configure(has_counter=False)
        self.nats = Nats(arguments.nats, folder, arguments.servers)
        # So small that snapshots are written all the time.
        settings = {"CLUSTER_SNAPSHOT_BYTES": 500_000, "CLUSTER_CUT_AFTER_MS": 2_000}
        settings |= {"CLUSTER_EVENTS": "true", "CLUSTER_EVENTS_AGAIN_AFTER_MS": 16_000}
        settings |= {"SOCKETS_PER_USER_MAX": 2, "MAILBOXES_MESSAGES_MAX": 100_000, "MAILBOXES_BYTES_MAX": 100_000_000}
        self.nodes = [Node(arguments.signalpost, folder, index, self.nats, settings) for index in range(NODES)]

    async def start(self):
        self.nats.start_all()
        for node in self.nodes:
            node.start()
        print(f"ready after {await ready(self.nodes):.1f} s", flush=True)

    async def through_proxies(self):
        """Starts one node after the other anew, so that it reaches NATS through its proxy."""
        for node in self.nodes:
            node.use(await node.proxy.start())
            node.stop()
            node.start()
            await ready(self.nodes)

    def end(self):
        for node in self.nodes:
            node.end()
            node.proxy.end()
        self.nats.end()

    def other(self, node):
        return next(other for other in self.nodes if other is not node)

    def configure(self, has_counter):
        text = CONFIG.format(counts=max(1, self.arguments.counts), enabled=json.dumps(has_counter))
        (self.folder / "signalpost.toml").write_text(text)

    async def load_counter(self):
        """Has all nodes load the policy that counts."""
        self.configure(has_counter=True)
        for node in self.nodes:
            status, text = await node.request("POST", f"{BASE}/policies/reload")
            if status != 200:
                raise Failed(f"{node.name} loads no further policy: {status} {text}")

        async def is_loaded():
            told = [await node.get(f"{BASE}/policies") for node in self.nodes]
            return all(any(policy["name"] == "counter" for policy in one["policies"]) for one in told)

        await until("all nodes have loaded the policy", is_loaded)

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

    async def hold_the_same(self):
        """Waits until all nodes have the same in memory: what is kept, who is there, groups, state, ids and letters."""
        found = []

        async def is_same():
            views = [await node.get(f"{BASE}/cluster?digest=true") for node in self.nodes]
            found[:] = [{kind: sum for kind, sum in view.get("digest", {}).items() if kind != "frame"} for view in views]
            return found[0] != {} and all(one == found[0] for one in found)

        try:
            # What was read is told, and marked, some times in a second.
            await until("all nodes hold the same", is_same, 30)
        except Failed as failed:
            kinds = [kind for kind in found[0] if any(one.get(kind) != found[0][kind] for one in found)]
            raise Failed(f"{failed}: {[{kind: one.get(kind) for kind in kinds} for one in found]}")
        return {kind: sum["count"] for kind, sum in found[0].items()}

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

    async def closes(socket, code, what):
        """Reads until a socket is closed, which it is with this code."""
        try:
            async with asyncio.timeout(20):
                while True:
                    await socket.recv()
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != code:
                raise Failed(f"{what} is closed with {closed}")

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
            await closes(phone, 4202, "the oldest device")
            status, text = await others[0].request("DELETE", f"{BASE}/users/ann/sessions")
            if (status, json.loads(text)) != (200, {"ended": 2}):
                raise Failed(f"sessions of all nodes are ended from one: {status} {text}")
            for one in (tablet, third):
                await closes(one, 4200, "a session that an operator ends")

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


async def first_snapshot(run):
    """A node that comes after the stream was cut off for the first time begins with the only snapshot that there is."""
    for number in range(30):
        headers = [("Content-Type", "application/json")]
        status, text = await run.nodes[number % NODES].request("POST", f"{BASE}/users/bulk/messages", {"text": "x" * 20_000}, headers)
        if status != 202:
            raise Failed(f"a message is answered with {status}: {text}")

    async def is_cut_off():
        return any("the stream is cut off" in node.log.read_text() for node in run.nodes)

    await until("the stream is cut off", is_cut_off)
    node = run.other(await run.leader())
    node.stop()
    node.start()
    await ready(run.nodes)
    await run.hold_the_same()
    print("snapshots: a node begins with the first one", flush=True)


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


async def counts(run):
    """Two producers at two nodes have a policy count on one key, while another node comes to lead: it has counted each event once."""
    each, batch = run.arguments.counts // 2, 50
    headers = [("Content-Type", "application/cloudevents-batch+json")]

    async def produce(name, first, upto):
        connection = Connection(run.nodes, run.nodes.index(first))
        for number in range(0, upto, batch):
            ids = [f"{name}.{number + index}" for index in range(min(batch, upto - number))]
            notice = {"specversion": "1.0", "source": "/counts", "type": "notice.posted", "data": {"user_id": "counter"}}
            await connection.until_answered(f"{BASE}/events", [notice | {"id": id} for id in ids], headers)
        connection.next()

    began = time.monotonic()
    leader = await run.leader()
    producing = asyncio.gather(*(produce(f"c{index}", node, each) for index, node in enumerate([leader, run.other(leader)])))
    await asyncio.sleep(1)
    leader.stop()
    leader.start()
    await producing
    took = time.monotonic() - began
    await ready(run.nodes)
    for number, node in enumerate(run.nodes):
        event = {"specversion": "1.0", "id": f"more{number}", "source": "/counts", "type": "notice.posted", "data": {"user_id": "counter"}}
        status, text = await node.request("POST", f"{BASE}/events", event, [("Content-Type", "application/cloudevents+json")])
        if "throttled" not in text:
            raise Failed(f"{2 * each} events are counted, and {node.name} counts another one: {status} {text}")
    held = await run.hold_the_same()
    print(f"counts: {2 * each} events of two nodes' producers are counted to {2 * each} on one key, in {took:.1f} s, {held}", flush=True)


async def streams(run):
    """A producers' stream at a node that does not lead: frames are answered in their order, and decided once although the leader dies."""
    leader = await run.leader()
    node = run.other(leader)

    def frame(number):
        event = {"specversion": "1.0", "source": "/stream", "type": "notice.posted", "data": {"user_id": "stream"}}
        tell = {"user": "stream", "message": {"number": number}, "id": f"k{number}"}
        return [tell, event | {"id": f"e{number}"}, [event | {"id": f"e{number}"}, event | {"id": f"f{number}"}]][number % 3]

    def is_accepted(number, answer):
        receipts = answer if isinstance(answer, list) else [answer]
        wanted = [f"e{number}", f"f{number}"][: number % 3]
        problems = [receipt for receipt in receipts if "code" in receipt]
        if any(problem["status"] not in (409, 503) for problem in problems):
            raise Failed(f"frame {number} is answered with {answer}")
        if problems:
            return False
        ids = [receipt["id"] for receipt in receipts]
        if wanted and ids != wanted:
            raise Failed(f"frame {number} is answered with {ids}: answers are in another order")
        return True

    many, refused = 600, 0
    async with connect(f"ws://127.0.0.1:{node.port}{BASE}/publish", subprotocols=["signalpost.publish.v1"], proxy=None, max_size=None) as socket:
        credit = json.loads(await socket.recv())["credit"]
        waiting, has_died = list(range(many)), False
        while waiting:
            sent = waiting[: min(credit, 100)]
            for number in sent:
                await socket.send(json.dumps(frame(number)))
            if not has_died and len(waiting) <= many // 2:
                # Frames are under way.
                has_died = True
                leader.kill()
            answers = [json.loads(await asyncio.wait_for(socket.recv(), 30)) for _ in sent]
            again = [number for number, answer in zip(sent, answers) if not is_accepted(number, answer)]
            refused += len(again)
            waiting = again + waiting[len(sent) :]
            if again:
                await asyncio.sleep(0.2)
    leader.start()
    await ready(run.nodes)
    mailbox = (await node.get(f"{BASE}/users/stream"))["mailbox"]
    if mailbox["messages"] != many // 3 * 4:
        raise Failed(f"{many} frames of a stream became {mailbox}")
    print(f"streams: {many} frames at a node that does not lead are answered in order and decided once; {refused} answers were 503 when the leader died", flush=True)


async def from_nats(run):
    """What producers publish to NATS is decided once, also if the leader dies meanwhile, and what nobody takes is a dead letter."""
    many, subject = 300, "signalpost.events"

    async def letters():
        return (await run.nodes[0].get(f"{BASE}/dead-letters"))["dead_letters"]

    # Nobody wants it yet, so it is kept until somebody does.
    early = {"specversion": "1.0", "id": "early", "source": "/nats", "type": "notice.posted", "data": {"user_id": "early"}}
    await until("the stream of events is there", lambda: is_taken(run, subject, early))

    async def is_letter():
        return [(letter["outcome"], letter["event_id"]) for letter in await letters()] == [("untaken", "early")]

    await until("an event that no policy wants is a dead letter", is_letter)
    await run.load_counter()
    status, text = await run.nodes[1].request("POST", f"{BASE}/dead-letters/{(await letters())[0]['id']}/retry")
    if status != 200 or json.loads(text)["recipients"] != 1:
        raise Failed(f"an event is retried that a policy wants now: {status} {text}")
    await until("its letter is gone", lambda: is_empty(letters))

    async def produce(number):
        data, id = {"user_id": "nats"}, f"n{number}"
        structured = {"specversion": "1.0", "id": id, "source": "/nats", "type": "notice.posted", "data": data}
        binary = {"ce-specversion": "1.0", "ce-id": id, "ce-source": "/nats", "ce-type": "notice.posted", "Content-Type": "application/json"}
        ways = [(structured, {}), (structured, {"Content-Type": "application/cloudevents+json"}), (data, binary)]
        content, headers = ways[number % len(ways)]
        await until("NATS takes an event", lambda: is_taken(run, subject, content, headers))

    async def has_all():
        mailbox = (await (await run.leader()).get(f"{BASE}/users/nats"))["mailbox"]
        return mailbox is not None and mailbox["messages"] == many

    began = time.monotonic()
    for number in range(many // 2):
        await produce(number)
    leader = await run.leader()
    leader.kill()
    for number in range(many // 2, many):
        await produce(number)
    # Twice, as a producer does that has got no answer.
    await produce(many - 1)
    leader.start()
    await run.nats.publish(subject, b"no JSON")
    await run.nats.publish(subject, json.dumps({"specversion": "1.0", "id": "1", "source": "/nats", "type": "unknown"}).encode())
    await ready(run.nodes)
    await until("all events from NATS are decided", has_all)

    async def are_letters():
        return [(letter["outcome"], letter["event_type"]) for letter in await letters()] == [("untaken", "unread"), ("untaken", "unknown")]

    await until("what nobody takes is a dead letter", are_letters)
    took = time.monotonic() - began
    # With three servers, it is waited until what was not acked by the leader that died has come again, and was a duplicate.
    await asyncio.sleep(max(0, 17 - took) if run.nats.count > 1 else 0)
    if not await has_all():
        raise Failed("events from NATS are decided more than once")
    status, text = await run.nodes[1].request("POST", f"{BASE}/dead-letters/{(await letters())[1]['id']}/retry")
    if status != 409 or json.loads(text)["code"] != "policy_missing":
        raise Failed(f"an event that no policy wants is retried: {status} {text}")
    status, text = await run.nodes[1].request("DELETE", f"{BASE}/dead-letters")
    if (status, json.loads(text)) != (200, {"deleted": 2}):
        raise Failed(f"dead letters are deleted: {status} {text}")
    await run.hold_the_same()
    print(f"from NATS: {many} events, each decided once although the leader died, in {took:.1f} s; 2 are dead letters", flush=True)


async def is_taken(run, subject, content, headers=None):
    """Publishes to NATS, and returns whether it has answered: it does not while it elects."""
    try:
        return "seq" in await run.nats.publish(subject, json.dumps(content).encode(), headers)
    except EOFError:
        return False


async def is_empty(letters):
    return await letters() == []


async def says_how_nats_flushes(run):
    """The servers tell the nodes, if they are new enough and their system account lets them."""
    flushes = run.nats.version >= (2, 10, 23)
    said = "the NATS servers flush each write" if flushes else "these NATS servers don't flush each write"

    async def is_said():
        return all(said in node.log.read_text() for node in run.nodes)

    await until(f"all nodes say: {said}", is_said, 10)


async def storm(run):
    """A node dies that has all the sockets: they all come back at the two others at once, and go on where they were."""
    leader = await run.leader()
    node, rng = run.other(leader), random.Random(run.random.random())
    users = [f"s{number}" for number in range(run.arguments.storm)]
    # A process that is killed closes its sockets, so nobody need ask whether it is still there.
    devices = [Device(user, run.nodes, run.nodes.index(node), rng, silence_s=None) for user in users]
    tasks = []
    for first in range(0, len(devices), 200):
        tasks += [asyncio.create_task(device.run()) for device in devices[first : first + 200]]
        await greeted(devices[first : first + 200])
    over = asyncio.Event()
    producers = [Producer(f"t{number}", run.nodes, number % NODES, users, rng) for number in range(2 * NODES)]
    producing = [asyncio.create_task(producer.run(None, over)) for producer in producers]
    try:
        await asyncio.sleep(3)
        before = sum(device.connects for device in devices)
        node.kill()
        began = time.monotonic()

        async def have_resumed():
            for device in devices:
                if device.failure:
                    raise device.failure
            return all(device.resumed for device in devices)

        await until("all devices have resumed", have_resumed, 180)
        took = time.monotonic() - began
        node.start()
        over.set()
        async with asyncio.timeout(120):
            await asyncio.gather(*producing)
        await run.all_came(users, producers, devices)
        check(users, producers, devices)
        await ready(run.nodes)
        await run.hold_the_same()
    finally:
        await stop(tasks + producing)
    attempts = sum(device.connects for device in devices) - before
    sent = sum(len(producer.sent) for producer in producers)
    print(f"storm: {len(devices)} devices of a node that died have resumed at two others after {took:.1f} s ({attempts} sessions); {sent} messages, exact", flush=True)


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
    kinds = KINDS[run.arguments.kinds]
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
        held = await run.hold_the_same()
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
        f"{len(devices)} devices connected {connects} times; nothing lost, nothing twice, one order; "
        f"all nodes hold the same: {', '.join(f'{count} {kind}' for kind, count in held.items())}",
        flush=True,
    )


async def main(arguments):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cluster-"))
    print(f"seed {arguments.seed}; NATS {arguments.nats}, {arguments.servers} of them; logs in {folder}", flush=True)
    run = Run(arguments, folder)
    try:
        await run.start()
        await first_snapshot(run)
        await says_how_nats_flushes(run)
        await one_server(run)
        await policies.change(run)
        await policies.refuse(run)
        if arguments.events:
            await many(run)
        if arguments.counts:
            await from_nats(run)
            await streams(run)
            await counts(run)
        if arguments.storm:
            await storm(run)
        if arguments.faults:
            await run.through_proxies()
            await faults(run)
        await future.a_later_version_writes(run)
    except Failed as failed:
        print(f"failed: {failed}\nseed {arguments.seed}, logs in {folder}", file=sys.stderr)
        return 1
    finally:
        run.end()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("signalpost")
    parser.add_argument("counter")
    parser.add_argument("--nats", default="nats-server")
    parser.add_argument("--servers", type=int, choices=(1, 3), default=1)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--events", type=int, default=3_000)
    parser.add_argument("--counts", type=int, default=20_000)
    parser.add_argument("--storm", type=int, default=0)
    parser.add_argument("--faults", type=int, default=7)
    parser.add_argument("--kinds", choices=KINDS, default="all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    sys.exit(asyncio.run(main(parser.parse_args())))
