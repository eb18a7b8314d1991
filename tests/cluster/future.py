"""A version of the future, which writes what this one does not know."""

import struct
import zlib

from parts import BASE, Failed, ready, until

# The format of frames: see src/cluster/link.rs, src/store/frame.rs and src/store/codec.rs.
FORMAT = 1
MAY_BE_SKIPPED = 1


def frame(records, number, term):
    content = struct.pack("<QQ", number, term) + records
    return bytes([FORMAT]) + struct.pack("<II", len(content), zlib.crc32(content, FORMAT)) + content


def record(flags, content):
    return struct.pack("<BI", flags, len(content)) + content


async def write(run, records):
    """Writes a frame with these records at the end of the stream, as the node that leads would. Returns its number."""
    while True:
        leader = await run.leader()
        view = await leader.get(f"{BASE}/cluster")
        number = view["absorbed"] + 1
        answer = await run.nats.publish("signalpost.log", frame(records, number, view["term"]), {"Nats-Expected-Last-Sequence": number - 1})
        if answer.get("seq") == number:
            return number
        if answer.get("error", {}).get("err_code") != 10071:
            raise Failed(f"JetStream answers with {answer}")


async def a_later_version_writes(run):
    """What may be skipped is, and the nodes go on; what may not ends each of them with a sentence, however often it is started."""
    unknown = bytes([99, 1, 2])
    number = await write(run, record(MAY_BE_SKIPPED, unknown))

    async def is_absorbed():
        return all([(await node.get(f"{BASE}/cluster"))["absorbed"] > number for node in run.nodes if await node.is_ready()])

    # The node that led finds that another one has written, and leads no longer.
    await ready(run.nodes)
    await until("the frame is absorbed, and others after it", is_absorbed)
    await ready(run.nodes)
    number = await write(run, record(0, unknown))
    sentence = f"frame {number} of the stream can't be read: a later version of Signalpost has written a record that this one doesn't know"
    for start in range(2):

        async def have_ended():
            return all([node.process.poll() is not None for node in run.nodes])

        await until("all nodes end", have_ended)
        for node in run.nodes:
            if node.process.returncode == 0:
                raise Failed(f"{node.name} ends as if all was well")
            if node.log.read_text().count(sentence) < start + 1:
                raise Failed(f"{node.name} does not say: {sentence}")
        if start == 0:
            for node in run.nodes:
                node.start()
    print("future: a record that may be skipped is, and one that may not ends all nodes with a sentence, at each start", flush=True)
