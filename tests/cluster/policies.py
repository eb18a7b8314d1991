"""A policy that is changed at one node of the cluster, while events run."""

import asyncio
import hashlib
import json
import signal

from websockets.asyncio.client import connect

from parts import BASE, PLUGINS, Failed, ready, until


async def ended(node):
    return node.process.poll() is not None


class Versions:
    """Versions of the bundled policy `pooling`, which differ in the text of a match."""

    TEXT = b"matched for a pooling request!"

    def __init__(self):
        self.original = (PLUGINS / "pooling.wasm").read_bytes()
        if self.original.count(self.TEXT) != 1:
            raise Failed("pooling.wasm has no text that could be another one")

    def component(self, number):
        return self.original.replace(self.TEXT, self.TEXT[:-1] + str(number).encode())

    def digest(self, number):
        return hashlib.sha256(self.component(number)).hexdigest()

    @staticmethod
    def put(node, component):
        unfinished = node.plugins / ".pooling"
        unfinished.write_bytes(component)
        unfinished.rename(node.plugins / "pooling.wasm")


async def change(run):
    """A policy that is changed at one node changes on all, while events run: once, and in one order."""
    versions, over, published = Versions(), asyncio.Event(), 0
    leader = await run.leader()
    others = [node for node in run.nodes if node is not leader]

    async def publish(number):
        nonlocal published
        while not over.is_set():
            id, node = f"v{number}.{published}", run.random.choice(run.nodes)
            data = {"request_id": 1, "rider_id": "eve", "driver_id": "dan", "pool_id": 9}
            event = {"specversion": "1.0", "id": id, "source": "/versions", "type": "pooling.match.found", "data": data}
            try:
                status, text = await node.request("POST", f"{BASE}/events", event, [("Content-Type", "application/cloudevents+json")])
            except (OSError, EOFError, TimeoutError):
                # It is being restarted.
                await asyncio.sleep(0.05)
                continue
            if status not in (202, 409, 503):
                raise Failed(f"a match at {node.name} is answered with {status}: {text}")
            published += status == 202

    seen = {}

    async def read(node):
        """Notes which version has decided about each message."""
        async with connect(f"ws://127.0.0.1:{node.port}{BASE}/ws/eve", subprotocols=["signalpost.v1"], proxy=None) as socket:
            async for text in socket:
                frame = json.loads(text)
                if frame["type"] == "message":
                    seen[frame["seq"]] = frame["data"]["details"].encode()[-1:]

    async def have(number):
        """Waits until all nodes have this version of the policy. Returns the seconds that it took."""
        found = {}

        async def do_have():
            found.clear()
            for node in run.nodes:
                try:
                    agreed, own = (await node.get(f"{BASE}/cluster")).get("policies"), await node.get(f"{BASE}/policies")
                except (OSError, EOFError, TimeoutError):
                    # It is being started.
                    return False
                if agreed is None or agreed["id"] != own["id"]:
                    return False
                digests = {one["name"]: one["digest"] for one in agreed["components"]}
                if digests["pooling"] != versions.digest(number) or digests != {one["name"]: one["digest"] for one in own["policies"]}:
                    return False
                found[node.name] = agreed["revision"]
            return True

        took = await until(f"all nodes have version {number}", do_have)
        await ready(run.nodes)
        revisions.append(set(found.values()))
        return took

    revisions = [{(await leader.get(f"{BASE}/cluster"))["policies"]["revision"]}]
    tasks = [asyncio.create_task(publish(number)) for number in range(4)]
    reading = asyncio.create_task(read(others[0]))
    try:
        await asyncio.sleep(1)
        # An operator asks a node that does not lead.
        versions.put(others[0], versions.component(1))
        status, text = await others[0].request("POST", f"{BASE}/policies/reload")
        if status != 200 or json.loads(text)["changed"] != ["pooling"]:
            raise Failed(f"a reload at {others[0].name} is answered with {status}: {text}")
        took = [await have(1)]
        await asyncio.sleep(0.5)
        # The folder of the node that leads is watched. That of another one is not.
        versions.put(others[1], versions.component(7))
        await asyncio.sleep(1.5)
        versions.put(leader, versions.component(2))
        took.append(await have(2))
        # What is refused at one node changes nothing.
        versions.put(others[0], b"no component")
        status, text = await others[0].request("POST", f"{BASE}/policies/reload")
        if status != 422:
            raise Failed(f"a reload of a broken plugin is answered with {status}: {text}")
        # A node that starts has what all have, without a plugin of its own.
        others[1].kill()
        for file in others[1].plugins.iterdir():
            file.unlink()
        others[1].start()
        await have(2)
        versions.put(others[0], versions.component(3))
        status, text = await others[0].request("POST", f"{BASE}/policies/reload")
        if status != 200:
            raise Failed(f"a reload at {others[0].name} is answered with {status}: {text}")
        took.append(await have(3))
        # A node that leads from now on does not change them, whatever is in its folder.
        leader.signal(signal.SIGTERM)
        await until("it has ended", lambda: ended(leader))
        leader.start()
        await have(3)
        await asyncio.sleep(0.5)
    finally:
        over.set()
        for task in tasks:
            await task
        await asyncio.sleep(1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    first = min(revisions[0])
    if revisions != [{first + more} for more in (0, 1, 2, 2, 3, 3)]:
        raise Failed(f"the nodes have agreed more than once for a change: {revisions}")
    decided = b"".join(seen[seq] for seq in sorted(seen))
    if decided != bytes(sorted(decided)) or set(decided) != set(b"!123"):
        changes = [decided[at : at + 2].decode() for at in range(len(decided) - 1) if decided[at] != decided[at + 1]]
        raise Failed(f"the versions change so: {changes}")
    print(
        f"policies: {len(seen)} events while they changed three times; all nodes had them after {', '.join(f'{one:.2f} s' for one in took)}",
        flush=True,
    )


async def refuse(run):
    """A node whose configuration refuses what all have agreed on is not ready, says why, and stops nobody."""
    leader = await run.leader()
    node, other = [node for node in run.nodes if node is not leader]
    node.signal(signal.SIGTERM)
    await until("it has ended", lambda: ended(node))
    environment = node.environment
    node.environment = environment | {"SIGNALPOST_POLICIES_POOLING_GRANTS": "[]"}
    node.start()

    async def is_said():
        try:
            status, text = await node.request("GET", "/readyz")
        except (OSError, EOFError, TimeoutError):
            return False
        lacks = [one.get("lack", "") for one in (await other.get(f"{BASE}/cluster"))["nodes"] if one["node"] == node.name]
        return status == 503 and "pooling" in text and "not granted" in text and any("not granted" in lack for lack in lacks)

    await until(f"{node.name} says what it refuses", is_said)
    await ready([leader, other])
    node.signal(signal.SIGTERM)
    await until("it has ended", lambda: ended(node))
    node.environment = environment
    node.start()
    await ready(run.nodes)
    print("policies: a node that refuses one says so, and the others go on", flush=True)
