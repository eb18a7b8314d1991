"""Kills a server again and again while it is under load, and checks after each restart that it has what it answered for.

Usage: kill.py SERVER_BINARY [--rounds N] [--seed S]       (needs the package `websockets`; `run` beside this file installs it)

Sixteen producers send events. At a random moment the server is killed with SIGKILL and started again on the same store.
What was not answered is sent again with the same id. Then, for each user, everything after the last ack must be there: each message of
each producer, in the order of its events, and a second copy only of the same event. What the policy made of the events in groups and in
its state is asked by further events, whose recipients the ledger knows. Meanwhile the log is cleaned, and must stay small.
"""

import asyncio
import random

from load import SEGMENT_BYTES, SOON_S, USERS, Failed, Http, Producer, Reader, Server, arguments_of, folder_of, messages_max

PRODUCERS = 16
# When most of what was written was read and had to make room, the log is cleaned. How many rounds that takes depends on how much the machine
# does in one: from this number of rounds on it must happen, and the rounds go on until it has, up to this many times the number.
ROUNDS_TO_CLEAN = 20
TIMES_MAX = 4


class Check:
    def __init__(self, binary, folder, seed):
        self.random, self.server = random.Random(seed), Server(binary, folder, messages_max(PRODUCERS + 1))
        self.ledger = {user: {} for user in USERS}
        self.producers = [Producer(f"p{number}", self.ledger, seed) for number in range(PRODUCERS)]
        self.verifier = Producer("v", self.ledger, seed)
        self.readers = [Reader(user, random.Random(f"{seed} {user}")) for user in USERS]
        self.number = self.events = self.copies = self.share = 0

    async def start(self):
        self.server.start(self.random.choice(["os", "fsync"]))
        if self.random.random() < 0.25:
            # Killed while it starts, or shortly after.
            await asyncio.sleep(self.random.uniform(0, 0.15))
            self.server.kill()
            self.server.start(self.random.choice(["os", "fsync"]))
        await self.server.listen()

    async def round(self):
        if self.random.random() < 0.4:
            # The server cleans its log once a second: so it begins to under this load.
            await asyncio.sleep(self.random.uniform(0.4, 1))
        load = [asyncio.create_task(producer.run(self.server)) for producer in self.producers]
        load += [asyncio.create_task(reader.run(self.server)) for reader in self.random.sample(self.readers, len(USERS) // 2)]
        await asyncio.sleep(self.random.uniform(0.05, 0.8))
        self.server.kill()
        async with asyncio.timeout(SOON_S):
            await asyncio.gather(*load)
        await self.start()
        async with asyncio.timeout(SOON_S):
            await self.verify()
            await self.measure()
        if self.random.random() < 0.2:
            await self.server.stop()
            await self.start()

    async def verify(self):
        http = Http(self.server)
        for producer in self.producers:
            if producer.unanswered:
                await producer.send(http, producer.unanswered)
        for producer in self.producers:
            # What was answered is known as a duplicate, also after the restart.
            for event in self.random.sample(producer.answered, min(3, len(producer.answered))):
                answer = await producer.send(http, [event])
                if not answer["duplicate"]:
                    raise Failed(f"{event.id} was answered, and is taken for new when it is sent again")
            self.events += len(producer.answered)
            producer.answered = []
            for pool, (members, _) in producer.pools.items():
                self.verifier.pools[pool] = (members, None)
                await self.verifier.send(http, [self.verifier.chat(pool, "nobody")])
        await self.read_all(http)
        http.close()

    async def measure(self):
        """Waits until the log has been cleaned: its files have at most twice the bytes that count, two segments, and the one in use."""
        while True:
            metrics = await self.server.metrics()
            most = 2 * metrics["signalpost_store_kept_bytes"] + 3 * SEGMENT_BYTES
            try:
                bytes = sum(segment.stat().st_size for segment in (self.server.folder / "store").glob("*.seg"))
                if bytes <= most:
                    break
            except FileNotFoundError:
                pass  # It is being cleaned.
            await asyncio.sleep(0.1)
        self.share = max(self.share, bytes / most)

    def cleaned(self):
        """Returns how many segments are gone."""
        return min(int(segment.stem) for segment in (self.server.folder / "store").glob("*.seg")) - 1

    async def read_all(self, http):
        for reader in self.readers:
            last = self.verifier.event(f"direct {reader.user}", {}, [reader.user])
            await self.verifier.send(http, [last])
            await reader.follow(self.server, last.id)
            self.copies += len(reader.read) - len(set(reader.read))
            reader.check(self.ledger[reader.user])
            self.ledger[reader.user].clear()

    async def run(self, rounds):
        try:
            await self.start()
            await self.read_all(Http(self.server))
            while self.number < rounds or (rounds >= ROUNDS_TO_CLEAN and not self.cleaned()):
                if self.number >= TIMES_MAX * rounds:
                    raise Failed("no segment was cleaned, so cleaning was not tried")
                self.number += 1
                await self.round()
        finally:
            self.server.kill()


def main():
    arguments = arguments_of(rounds={"default": 20})
    check = None
    with folder_of("kill", arguments.seed, lambda: f", round {check.number}" if check else "") as folder:
        check = Check(arguments.binary.resolve(), folder, arguments.seed)
        asyncio.run(check.run(arguments.rounds))
        print(
            f"ok  seed {arguments.seed}: {check.number} kills, {check.events} answered events, nothing lost; "
            f"{check.copies} read twice, {check.cleaned()} segments cleaned, at most {check.share:.0%} of the bytes that the log may have"
        )


main()
