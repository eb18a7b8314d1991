"""The producer that both clients' checks publish with, and how they report. No WebSocket here."""

import json
import sys
import urllib.request

# What the original's clients parse. Members may follow, so it ends before the brace.
MATCH = (
    '{"type":"pooling_match","request_id":42,"status":"matched",'
    '"details":"You have been matched for a pooling request!"'
)

# Whatever must come comes within this time, also on a busy machine.
SOON_S = 15


class Failed(Exception):
    pass


def ok(sentence):
    print(f"ok  {sentence}")


def equal(what, found, expected):
    if found != expected:
        raise Failed(f"{what}: expected {expected!r}, found {found!r}")


def is_match(what, text):
    if not text.startswith(MATCH):
        raise Failed(f"{what}: expected {MATCH!r} and what follows, found {text!r}")
    json.loads(text)


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SOON_S) as response:
        equal("the status of a POST", response.status, 202)
        return json.load(response)


def publish_match(address, rider, driver, pool):
    """Publishes a match and checks its receipt: each of the two has one mailbox, however many devices."""
    data = {"request_id": 42, "rider_id": rider, "driver_id": driver, "pool_id": pool}
    receipt = post(f"{address}/events", {"type": "pooling.match.found", "data": data})
    policies = [(policy["name"], policy["outcome"]) for policy in receipt["policies"]]
    equal("the receipt's policies", policies, [("pooling", "routed")])
    equal("the receipt's recipients", receipt["recipients"], 2)
    equal("the receipt's posted", receipt["posted"], 2)


def tell(address, user, message):
    receipt = post(f"{address}/users/{user}/messages", message)
    equal(f"posted to {user}", receipt["posted"], 1)


def run(main):
    """Runs a check; what it found wrong is one line, and everything else a traceback."""
    try:
        main(*sys.argv[1:])
    except Failed as failed:
        sys.exit(f"FAILED  {failed}")
