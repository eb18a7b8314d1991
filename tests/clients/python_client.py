"""Checks a server with the Python library `websockets`. Usage: python_client.py http://ADDRESS/api/pool"""

import json

from websockets.sync.client import connect

import producer
from producer import MATCH, SOON_S, equal, ok

# A mailbox is ordered. Who reads this first has not been told anything before, and nobody has to wait to be sure.
LAST = {"type": "last"}


def main(address):
    plain(address)
    resumed(address)


def open_socket(address, user, **options):
    return connect(f"{address.replace('http', 'ws', 1)}/ws/{user}", open_timeout=SOON_S, close_timeout=SOON_S, **options)


def plain(address):
    with (
        open_socket(address, 1001) as phone,
        open_socket(address, 1001) as tablet,
        open_socket(address, 2002) as driver,
        open_socket(address, 3003) as stranger,
    ):
        producer.publish_match(address, rider=1001, driver=2002, pool=7)
        ok("python: the receipt of a match counts two recipients and two messages")
        for user in (1001, 2002, 3003):
            producer.tell(address, user, LAST)
        for name, socket in (("first device of 1001", phone), ("second device of 1001", tablet), ("2002", driver)):
            producer.is_match(name, socket.recv(timeout=SOON_S))
            equal(f"{name}, after the match", json.loads(socket.recv(timeout=SOON_S)), LAST)
        ok("python: both devices of 1001, and 2002, read the match once and byte for byte")
        equal("3003", json.loads(stranger.recv(timeout=SOON_S)), LAST)
        ok("python: 3003 is not told of the match")
    equal("the close code that is echoed", stranger.close_code, 1000)
    ok("python: the server echoes the client's close code")


def resumed(address):
    with open_socket(address, 4004, subprotocols=["signalpost.v1"]) as socket:
        equal("the subprotocol", socket.subprotocol, "signalpost.v1")
        hello = receive(socket)
        equal("the first frame", hello["type"], "hello")
        equal("the hello's user", hello["data"]["user"], "4004")
        ok("python: a signalpost.v1 session begins with a hello")

        producer.publish_match(address, rider=4004, driver=5005, pool=8)
        text = socket.recv(timeout=SOON_S)
        seq = json.loads(text)["seq"]
        if not text.startswith(f'{{"seq":{seq},"type":"message","data":{MATCH}'):
            raise producer.Failed(f"4004: no envelope around the match: {text!r}")
        ok("python: a signalpost.v1 session reads the same match in an envelope")

        # Cut as a tunnel cuts: the connection ends without a closing handshake.
        socket.socket.shutdown(2)

    missed = [{"type": "missed", "number": number} for number in range(3)]
    for message in missed:
        producer.tell(address, 4004, message)
    with open_socket(address, 4004, subprotocols=["signalpost.v1"]) as socket:
        second = receive(socket)
        equal("the epoch after the cut", second["data"]["epoch"], hello["data"]["epoch"])
        socket.send(json.dumps({"type": "resume", "epoch": hello["data"]["epoch"], "seq": seq}))
        equal("the answer to resume", receive(socket), {"type": "resume", "data": {"recovered": True, "from": seq}})
        envelopes = [receive(socket) for _ in missed]
        equal("what was missed", [envelope["data"] for envelope in envelopes], missed)
        seqs = [seq] + [envelope["seq"] for envelope in envelopes]
        equal("the order of the seqs", seqs, sorted(set(seqs)))
        socket.send(json.dumps({"type": "ack", "seq": seqs[-1]}))
    ok("python: after a cut, resume recovers what was missed, in order")


def receive(socket):
    return json.loads(socket.recv(timeout=SOON_S))


producer.run(main)
