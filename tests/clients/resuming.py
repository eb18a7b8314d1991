"""A client of signalpost.v1 that was written from docs/protocol.md, "Write a client that misses nothing", alone: its steps have the page's numbers.

usage: resuming.py http://127.0.0.1:PORT/api/pool

Its connection is cut again and again while a producer goes on, and it has to process each message once, in order.
"""

import asyncio
import json
import random
import sys
import urllib.request

import websockets

MESSAGES = 300
USER = "resuming"
# A cut connection has read at most this many messages; some resumes are late, so that messages come before their answers.
READ_MAX, LATE_S_MAX, QUIET_S = 12, 0.1, 0.3


class Client:
    def __init__(self, url):
        self.url, self.epoch, self.last, self.early, self.processed, self.connections = url, None, None, set(), [], 0

    async def connection(self):
        """One connection, until it is cut or nothing comes any more."""
        self.connections += 1
        async with websockets.connect(self.url, subprotocols=["signalpost.v1"]) as socket:
            if random.random() < 0.3:
                await asyncio.sleep(random.random() * LATE_S_MAX)
            # 1.
            resume = {"type": "resume"} if self.epoch is None else {"type": "resume", "epoch": self.epoch, "seq": self.last}
            await socket.send(json.dumps(resume))
            is_answered, left = False, random.randint(1, READ_MAX)
            while left:
                try:
                    frame = json.loads(await asyncio.wait_for(socket.recv(), QUIET_S))
                except TimeoutError:
                    return
                if frame["type"] == "hello":
                    # 2.
                    if frame["data"]["epoch"] != self.epoch:
                        self.early.clear()
                    self.epoch = frame["data"]["epoch"]
                elif frame["type"] == "resume":
                    # 3.
                    is_answered, self.last = True, frame["data"]["from"]
                    assert frame["data"]["recovered"], frame
                elif frame["type"] == "message":
                    left -= 1
                    self.message(frame["seq"], frame["data"], is_answered)
            socket.transport.abort()

    def message(self, seq, data, is_answered):
        if is_answered and seq <= self.last:
            return
        # 4 and 5.
        if is_answered:
            self.last = seq
        if seq not in self.early:
            self.processed.append(data)
        if not is_answered:
            self.early.add(seq)


async def produce(base):
    for number in range(MESSAGES):
        request = urllib.request.Request(f"{base}/users/{USER}/messages", str(number).encode(), {"Content-Type": "application/json"})
        await asyncio.to_thread(lambda request=request: urllib.request.urlopen(request, timeout=10).read())
        await asyncio.sleep(random.random() * 0.01)


async def main(base):
    client = Client(base.replace("http", "ws", 1) + f"/ws/{USER}")
    # The first connection says where to resume from.
    await client.connection()
    producing = asyncio.create_task(produce(base))
    while not producing.done() or len(client.processed) < MESSAGES:
        await client.connection()
    await producing
    assert client.processed == list(range(MESSAGES)), client.processed
    print(f"ok  resuming: {MESSAGES} messages over {client.connections} connections, each once and in order")


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 60))
