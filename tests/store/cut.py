"""Cuts the power of a server under load at many moments, and checks what a server makes of what the disk may have then.

Usage: cut.py SERVER_BINARY [--cuts N] [--seed S] [--workers W]      (needs `strace` and the package `websockets`; `run` beside this file installs it)

First a server runs under load a few times, is killed, stopped and started again, and strace notes in which order it wrote, synced, made and
removed files, and what it sent to producers and readers. From that, for any moment, follows what the disk must have, and what it may have:
of what was not synced, each sector may be missing, zeros, new, or garbage, and so may files that were made or removed.

Then, for each of many moments, such a disk is made, and the same binary is started on it:
- it starts;
- a producer who was told "disk" has it: its message is there, and the event is a duplicate if it is sent again;
- no reader is told `recovered: true` if anything is missing that a producer was answered for, whatever it was told; and if the store
  synced all the time, every reader is told `recovered: true`;
- messages of a producer are in the order of its events, no seq is given twice, and groups are as the answered events left them.
Some of these servers are killed, once or twice, before they are asked.
"""

import asyncio
import json
import pathlib
import random
import re
import shutil
import struct
import zlib

from websockets.asyncio.client import connect

from load import SOON_S, USERS, Event, Failed, Http, Producer, Reader, Server, arguments_of, folder_of, messages_max, resumed

PRODUCERS = 6
# Few, and little for each, so that the log is soon full of what was read, and is cleaned.
READERS, UNREAD_MAX = USERS[:6], 15
# Each process ends at some moment after it has begun that many segments.
SEGMENTS_EACH = 12, 20
# The last one goes on until the log is cleaned, which takes as long as the machine needs to fill it with what was read.
CLEANED_WITHIN_S = 120
SECTOR = 512
STRACE = [
    "strace", "-D", "-f", "--seccomp-bpf", "-yy", "-xx", "-s", "100000000",
    "-e", "trace=openat,pwrite64,ftruncate,fsync,fdatasync,unlink,rename,write,writev,sendto",
]  # fmt: skip
# Bytes of a segment's header, and where the machine's run is in it.
HEADER, BOOT = 101, 76
# A system call begins or is seen whole, or it ends.
LINE = re.compile(r"^(\d+) +(?:<\.\.\. \w+ resumed>(.*)|(\w+)\((.*))$", re.DOTALL)
RETURNED = re.compile(r"\) += (-?\d+)(?:<.*>)?(?: [A-Z].*)?$", re.DOTALL)
CLIENT = re.compile(r"\d+<TCP:\[[^>]*->[\d.]+:(\d+)\]>")
FILE = re.compile(r"\d+<((?:\\x[0-9a-f]{2})*)>")
WRITTEN = re.compile(r'"((?:\\x[0-9a-f]{2})*)", \d+, (\d+)')
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def bytes_of(text):
    return bytes.fromhex(text.replace("\\x", ""))


def calls(trace):
    """Returns the system calls of a trace: name, arguments, result (None: it never returned), and the numbers of its first and last line."""
    under_way, all = {}, []
    for number, line in enumerate(trace.read_text().splitlines()):
        found = LINE.match(line)
        if not found:
            continue
        pid, resumed, name, rest = found.groups()
        if name is None:
            call = under_way.pop(pid, None)
            if call is None:
                continue
            call[1] += resumed
        else:
            call = [name, rest, None, number, number]
            all.append(call)
            if rest.endswith("<unfinished ...>"):
                call[1] = rest.removesuffix("<unfinished ...>")
                under_way[pid] = call
                continue
        returned = RETURNED.search(call[1])
        call[2] = int(returned[1]) if returned else None
        call[4] = number
    return all


class Inode:
    """A file: what the disk has of it for sure, and what was done to it since."""

    def __init__(self):
        self.durable, self.since = b"", []

    def cached(self):
        content = bytearray(self.durable)
        for _, offset, data in self.since:
            if data is None:
                del content[offset:]
            else:
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
        return bytes(content)

    def sync(self, before):
        later = [change for change in self.since if change[0] >= before]
        self.since = [change for change in self.since if change[0] < before]
        self.durable, self.since = self.cached(), later

    def after_a_cut(self, random, garbage):
        """Returns what the disk may have."""
        old, new = self.durable, self.cached()
        kind = random.choice(["nothing", "all", "mixed", "mixed"])
        if kind == "nothing" or not self.since:
            return old
        if kind == "all":
            return new
        length = random.choice([len(old), len(new), random.randint(min(len(old), len(new)), max(len(old), len(new)))])
        content, share = bytearray(length), random.choice([0.3, 0.9, 0.99])
        for start in range(0, length, SECTOR):
            end = min(start + SECTOR, length)
            was, written = old[start:end], new[start:end]
            # What is on the disk and was not changed since stays.
            sure = len(was) if was == written[: len(was)] else 0
            if random.random() < share:
                filled = written.ljust(end - start, b"\0")
            elif random.random() < 0.5:
                filled = was.ljust(end - start, b"\0")
            else:
                filled = garbage(random, end - start)
                filled = written[:sure] + filled[sure:] if sure else filled
                if not sure and len(was):
                    # A sector is overwritten as a whole or not at all.
                    filled = random.choice([was, written]).ljust(end - start, b"\0")
            content[start:end] = filled
        return bytes(content)


class Disk:
    """The folder of a store."""

    def __init__(self):
        self.durable, self.cached, self.since, self.used = {}, {}, [], []

    def change(self, name, inode):
        self.since.append((name, inode))
        if inode is None:
            self.cached.pop(name, None)
        else:
            self.cached[name] = inode
            self.used.append(inode)

    def sync(self):
        self.durable, self.since = dict(self.cached), []

    def after_a_cut(self, random):
        names = dict(self.durable)
        kept = random.randint(0, len(self.since))
        for index, (name, inode) in enumerate(self.since):
            # A journal keeps the order. Not every file system has one.
            if index < kept or random.random() < 0.2:
                if inode is None:
                    names.pop(name, None)
                else:
                    names[name] = inode

        def garbage(random, length):
            stale = random.choice(self.used).cached() if self.used and random.random() < 0.5 else b""
            start = random.randrange(0, len(stale), SECTOR) if stale else 0
            return (stale[start : start + length] + random.randbytes(length))[:length]

        return {name: inode.after_a_cut(random, garbage) for name, inode in names.items()}


class Sent:
    """What a connection was sent: answers to a producer, or frames to a reader."""

    def __init__(self):
        self.bytes, self.is_reader, self.epoch, self.seen = b"", False, None, []

    def add(self, data):
        """Returns the receipts in it."""
        self.bytes += data
        receipts = []
        while not self.is_reader and b"\r\n\r\n" in self.bytes:
            head, rest = self.bytes.split(b"\r\n\r\n", 1)
            if head.startswith(b"HTTP/1.1 101"):
                self.is_reader, self.bytes = True, rest
                break
            length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
            if len(rest) < length:
                break
            if head.startswith(b"HTTP/1.1 202"):
                body = json.loads(rest[:length])
                receipts += body if isinstance(body, list) else [body]
            self.bytes = rest[length:]
        while self.is_reader and len(self.bytes) >= 2:
            length, start = self.bytes[1], 2
            if length >= 126:
                start = 4 if length == 126 else 10
                length = int.from_bytes(self.bytes[2:start])
            if len(self.bytes) < start + length:
                break
            if self.bytes[0] & 15 == 1:
                frame = json.loads(self.bytes[start : start + length])
                if frame["type"] == "hello":
                    self.epoch = frame["data"]["epoch"]
                elif frame["type"] == "message":
                    self.seen.append((frame["seq"], frame["data"]["eid"]))
            self.bytes = self.bytes[start + length :]
        return receipts


class Recording:
    """A server under load that is killed, stopped and started again, with the order of what it did."""

    def __init__(self, binary, folder, seed, durabilities):
        self.random, self.server, self.durabilities = random.Random(f"{seed} recording"), Server(binary, folder, messages_max(PRODUCERS, UNREAD_MAX)), durabilities
        self.ledger = {user: {} for user in READERS}
        self.producers = [Producer(f"p{number}", self.ledger, seed, UNREAD_MAX) for number in range(PRODUCERS)]
        self.readers = [Reader(user, random.Random(f"{seed} {user}")) for user in READERS]
        # What changes a `Moment`, in order.
        self.steps = []
        # The folder after each process.
        self.folders = {}

    async def run(self):
        for number, durability in enumerate(self.durabilities):
            await self.phase(number, durability)
        if not any(kind == "unlink" for kind, *_ in self.steps):
            raise Failed("no segment was cleaned, so cleaning was not cut")

    async def phase(self, number, durability):
        trace = self.server.folder / f"trace{number}"
        self.server.start(durability, around=[*STRACE, "-o", trace])
        await self.server.listen()
        load = [asyncio.create_task(worker.run(self.server)) for worker in [*self.producers, *self.readers]]
        first, enough = self.segment(), self.random.randint(*SEGMENTS_EACH)
        is_last = number + 1 == len(self.durabilities)
        async with asyncio.timeout(CLEANED_WITHIN_S):
            while self.segment() < first + enough or (is_last and self.oldest() == 1):
                await asyncio.sleep(0.05)
                for reader in self.readers:
                    # What was read makes room for more.
                    for producer, ids in self.ledger[reader.user].items():
                        self.ledger[reader.user][producer] = [id for id in ids if id not in reader.got]
        if number % 2:
            await self.server.stop()
        else:
            self.server.kill()
        async with asyncio.timeout(SOON_S):
            await asyncio.gather(*load)
            # strace is nobody's child, and ends by itself.
            while not re.search(rf"(?m)^{self.server.process.pid} +\+\+\+", trace.read_text()):
                await asyncio.sleep(0.05)
        users = {port: reader.user for reader in self.readers for port in reader.ports}
        for reader in self.readers:
            reader.ports.clear()
        self.steps += steps(trace, number, self.server.folder / "store", users)
        self.steps.append(("end", (number + 1, 0), {path.name: path.read_bytes() for path in (self.server.folder / "store").glob("*.seg")}))

    def segment(self):
        return max(self.segments())

    def oldest(self):
        return min(self.segments())

    def segments(self):
        return [int(segment.stem) for segment in (self.server.folder / "store").glob("*.seg")]


def steps(trace, process, folder, users):
    """Returns what a process did, in order."""
    all = []
    for name, rest, result, first, last in calls(trace):
        if result is not None and result < 0:
            continue
        if client := CLIENT.match(rest):
            if result is not None:
                data = b"".join(map(bytes_of, TEXT.findall(rest)))[:result]
                all.append((first, "sent", (process, int(client[1])), users.get(int(client[1])), data))
            continue
        if name in ("openat", "unlink"):
            path = pathlib.Path(bytes_of(TEXT.search(rest)[1]).decode())
        elif file := FILE.match(rest):
            path = pathlib.Path(bytes_of(file[1]).decode())
        else:
            continue
        is_segment = path.parent == folder and path.suffix == ".seg"
        if is_segment and name == "pwrite64":
            text, offset = WRITTEN.search(rest).groups()
            all.append((first, "change", path.name, int(offset), bytes_of(text)[:result]))
        elif is_segment and name == "ftruncate":
            all.append((first, "change", path.name, int(re.search(r", (\d+) *\)", rest)[1]), None))
        elif is_segment and name == "openat" and "O_CREAT" in rest and result is not None:
            all.append((last, "create", path.name))
        elif is_segment and name == "unlink" and result is not None:
            all.append((last, "unlink", path.name))
        elif name in ("fsync", "fdatasync") and result is not None and (is_segment or path == folder):
            all.append((last, "sync", path.name if is_segment else None, first))
    all.sort(key=lambda step: step[0])
    return [(kind, (process, line), *rest) for line, kind, *rest in all]


class Moment:
    """What is known at one moment: the disk, what producers were answered, and what readers have seen."""

    def __init__(self):
        self.disk, self.connections, self.answered, self.readers = Disk(), {}, {}, {}

    def take(self, step):
        match step:
            case ("sent", _, connection, user, data):
                sent = self.connections.setdefault(connection, Sent())
                for receipt in sent.add(data):
                    self.answered.setdefault(receipt["id"], receipt["stored"])
                if sent.is_reader and user:
                    epoch, seen = self.readers.get(user, (None, {}))
                    self.readers[user] = (sent.epoch or epoch, seen | dict(sent.seen))
                    sent.seen.clear()
            case ("change", at, name, offset, data):
                self.disk.cached[name].since.append((at, offset, data))
            case ("create", at, name):
                if name in self.disk.cached:
                    self.disk.cached[name].since.append((at, 0, None))
                else:
                    self.disk.change(name, Inode())
            case ("unlink", _, name):
                self.disk.change(name, None)
            case ("sync", (process, _), None, _):
                self.disk.sync()
            case ("sync", (process, _), name, first):
                if name in self.disk.cached:
                    self.disk.cached[name].sync((process, first))
            case ("end", at, files):
                if files.keys() != self.disk.cached.keys():
                    raise Failed(f"the trace is not what happened: {files.keys() ^ self.disk.cached.keys()}")
                for name, content in files.items():
                    # A write that was under way when the process was killed.
                    if self.disk.cached[name].cached() != content:
                        self.disk.cached[name].since += [(at, 0, None), (at, 0, content)]


class Cut:
    """A server on what the disk may have at one moment."""

    def __init__(self, recording, moment, random, folder):
        self.recording, self.random, self.got = recording, random, {}
        self.answered, self.readers = dict(moment.answered), dict(moment.readers)
        self.is_synced = set(recording.durabilities) == {"fsync"}
        self.server = Server(recording.server.binary, folder, recording.server.messages_max)
        (folder / "store").mkdir(parents=True)
        (folder / "store").chmod(0o700)
        for name, content in moment.disk.after_a_cut(random).items():
            (folder / "store" / name).write_bytes(on_another_run_of_the_machine(content))

    async def check(self):
        durability = self.recording.durabilities[-1]
        try:
            for _ in range(self.random.choice([0, 0, 1, 2])):
                self.server.start(durability)
                await asyncio.sleep(self.random.uniform(0, 0.3))
                self.server.kill()
            self.server.start(durability)
            await self.server.listen()
            async with asyncio.timeout(SOON_S):
                await self.probe()
                await asyncio.gather(*(self.read(user) for user in READERS))
                await self.send_again()
                if self.is_synced:
                    self.groups()
        finally:
            self.server.kill()

    async def probe(self):
        """Asks for the members of each pool: they are told of a chat."""
        http = Http(self.server)
        for producer in self.recording.producers:
            probes = [Event(f"probe {pool}", "pooling.chat.message", {"pool_id": pool, "from": "nobody", "text": ""}, []) for pool in producer.pools]
            await http.post("/events", [probe.cloud_event() for probe in probes], "application/cloudevents-batch+json")
        http.close()

    async def read(self, user):
        epoch, seen = self.readers.get(user, (None, {}))
        cursor = max(seen, default=0)
        http = Http(self.server)
        await http.post(f"/users/{user}/messages", {"eid": "last"}, "application/json")
        http.close()
        now = {}
        url = f"ws://{self.server.host}:{self.server.port}{self.server.base}/ws/{user}"
        async with connect(url, subprotocols=["signalpost.v1"], proxy=None, open_timeout=SOON_S, max_size=None) as socket:
            hello = json.loads(await socket.recv())["data"]
            await socket.send(json.dumps({"type": "resume", "epoch": epoch or hello["epoch"], "seq": cursor}))
            answer, early = await resumed(socket, cursor)
            again = {frame["seq"]: frame for frame in early}
            while "last" not in now.values():
                frame = early.pop(0) if early else json.loads(await socket.recv())
                if frame["seq"] <= max(now, default=0):
                    if again.get(frame["seq"]) == frame:
                        continue
                    raise Failed(f"{user} reads {frame} after {now}")
                now[frame["seq"]] = frame["data"]["eid"]
        self.got[user] = set(now.values())
        has = set(seen.values()) | set(now.values())
        missing = {id: stored for id, stored in self.answered.items() if id not in has and user in self.recipients(id)}
        about = f"{user} had read {epoch} to {cursor}, and is told {answer} after {hello}"
        lost = [id for id, stored in missing.items() if stored == "disk"]
        if lost:
            raise Failed(f"{about}; the disk had {lost}")
        recovered = answer["data"]["recovered"]
        if recovered and missing and epoch:
            raise Failed(f"{about}, but misses {missing}")
        unread = [id for id in self.answered if user in self.recipients(id) and id not in seen.values()]
        if self.is_synced and unread and epoch and not recovered:
            raise Failed(f"{about}, but misses nothing")
        if hello["epoch"] == epoch and min(now) <= cursor:
            raise Failed(f"{about}, and gets {now}: a seq is given twice, or was read already")
        order = {}
        for id in dict.fromkeys([*(seen[seq] for seq in sorted(seen)), *now.values()]):
            if "." in id:
                producer, count = id.split(".")
                order.setdefault(producer, []).append(int(count))
        if any(counts != sorted(counts) for counts in order.values()):
            raise Failed(f"{about}, in another order: {order}")

    def recipients(self, id):
        name, count = id.split(".")
        return self.recording.producers[int(name[1:])].events[int(count)].recipients

    async def send_again(self):
        http = Http(self.server)
        stored = [id for id, stored in self.answered.items() if stored == "disk"]
        for id in self.random.sample(stored, min(5, len(stored))):
            name, count = id.split(".")
            producer = self.recording.producers[int(name[1:])]
            answer = await Producer(name, {}, 0).send(http, [producer.events[int(count)]])
            if not answer["duplicate"]:
                raise Failed(f"{id} was answered, and is taken for new when it is sent again")
        http.close()

    def groups(self):
        """The pools of each producer are as its last answered event left them, or one of the request that was under way."""
        for producer in self.recording.producers:
            last = max((int(id.split(".")[1]) for id in self.answered if id.split(".")[0] == producer.name), default=0)
            after = producer.events.get(last + 1)
            under_way = [event for event in producer.events.values() if after and event.request == after.request and after.request]
            allowed = [event.pools for event in ([producer.events[last]] if last else []) + under_way]
            if not last:
                allowed.append({pool: set() for pool in producer.pools})
            found = {pool: {user for user, ids in self.got.items() if f"probe {pool}" in ids} for pool in producer.pools}
            if found not in allowed:
                raise Failed(f"the pools of {producer.name} are {found}, and not of {allowed}")


def on_another_run_of_the_machine(segment):
    """Returns the segment as a machine sees it that was started again: its header names another run."""
    head = segment[: HEADER - 4]
    if len(segment) < HEADER or zlib.crc32(head) != struct.unpack("<I", segment[HEADER - 4 : HEADER])[0]:
        return segment
    head = head[:BOOT] + bytes([head[BOOT] ^ 1]) + head[BOOT + 1 :]
    return head + struct.pack("<I", zlib.crc32(head)) + segment[HEADER:]


async def check(arguments, folder):
    counts = {"cuts": 0, "answered": 0}
    kinds = [("fsync",), ("os", "fsync"), ("fsync",), ("os",)][: arguments.recordings]
    for number, modes in enumerate(kinds):
        durabilities = [modes[phase % len(modes)] for phase in range(4)]
        recording = Recording(arguments.binary.resolve(), folder / f"recording{number}", f"{arguments.seed} {number}", durabilities)
        recording.server.folder.mkdir()
        await recording.run()
        draw = random.Random(f"{arguments.seed} {number} cuts")
        share = arguments.cuts // len(kinds)
        points = sorted(draw.choices(range(len(recording.steps)), k=share))
        moment, taken, running = Moment(), 0, set()

        async def one(cut, name):
            try:
                await cut.check()
            except BaseException as error:
                raise Failed(f"recording {number} ({durabilities}), {name}: {error!r}") from error
            shutil.rmtree(cut.server.folder)

        for index, point in enumerate(points):
            while taken < point:
                moment.take(recording.steps[taken])
                taken += 1
            name = f"cut {index} before step {point}: {str(recording.steps[point])[:100]}"
            cut = Cut(recording, moment, random.Random(f"{arguments.seed} {number} {index}"), folder / f"cut{number}.{index}")
            counts["cuts"] += 1
            counts["answered"] += len(cut.answered)
            if len(running) >= arguments.workers:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                [task.result() for task in done]
            running.add(asyncio.create_task(one(cut, name)))
        await asyncio.gather(*running)
    return counts


def main():
    arguments = arguments_of(cuts={"default": 60}, recordings={"default": 2, "choices": range(1, 5)}, workers={"default": 2})
    with folder_of("cut", arguments.seed) as folder:
        counts = asyncio.run(check(arguments, folder))
    print(f"ok  seed {arguments.seed}: {counts['cuts']} cuts; what was answered before them, {counts['answered']} events in all, is there")


main()
