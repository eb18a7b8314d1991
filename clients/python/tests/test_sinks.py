"""The whole way back: a driver answers on a socket, a policy makes an event of it, and the example of a backend verifies what its sink sends."""

import json
import time
import urllib.request

import websockets.sync.client

import support

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEXT = "whsec_c2VjcmV0IG9mIHRoaXJ0eS10d28gYnl0ZXMgaGVyZSE="


def publish(server, type, data):
    body = json.dumps({"type": type, "data": data}).encode()
    request = urllib.request.Request(f"{server.url}/events", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=support.SOON_S) as answer:
        return json.load(answer)


def test_a_drivers_answer_arrives_at_the_example_of_a_backend_also_with_the_new_secret(tmp_path):
    examples = support.ROOT / "clients/python/examples"
    secrets = tmp_path / "secrets"
    # The server signs with both; the backend has the new one only.
    secrets.write_text(f"{SECRET}\n{NEXT}\n")
    with support.App(examples, {"SINK_SECRETS": NEXT}, "uvicorn sink:app") as app:
        settings = {
            "sinks_backend_url": f"{app.url}/signalpost",
            "sinks_backend_events": "pooling.offer.*",
            "sinks_backend_secret_files": str(secrets),
        }
        with support.Server(**settings) as server:
            with websockets.sync.client.connect(f"{server.url.replace('http', 'ws')}/ws/2002") as driver:
                publish(server, "pooling.request.created", {"request_id": 42, "rider_id": 1001, "candidate_driver_ids": [2002, 2003]})
                assert json.loads(driver.recv(timeout=support.SOON_S))["type"] == "pooling_offer"
                driver.send('{"type":"offer_accept","request_id":42}')
                app.waits(r"received .*'pooling.offer.accepted'.*'data': \{'request_id': 42, 'driver_id': 2002\}")
                sink = server.ask("/sinks")["sinks"][0]
                assert (sink["state"], sink["counters"]["refused"]) == ("delivering", 0), sink


def test_what_a_backend_refuses_for_its_signature_is_kept_and_arrives_once_the_secret_is_the_right_one(tmp_path):
    secrets = tmp_path / "secrets"
    secrets.write_text(f"{SECRET}\n")
    with support.App(support.ROOT / "clients/python/examples", {"SINK_SECRETS": NEXT}, "uvicorn sink:app") as app:
        settings = {
            "sinks_backend_url": f"{app.url}/signalpost",
            "sinks_backend_events": "orders.*",
            "sinks_backend_sources": "*",
            "sinks_backend_secret_files": str(secrets),
        }
        with support.Server(**settings) as server:
            publish(server, "orders.paid", {"n": 7})
            waits(lambda: server.ask("/dead-letters")["dead_letters"])
            (letter,) = server.ask("/dead-letters")["dead_letters"]
            assert "401" in json.dumps(letter), letter
            assert "received" not in app.said()
            secrets.write_text(f"{SECRET}\n{NEXT}\n")
            # The server reads the file again when it has changed, and signs what comes next with both.
            waits(lambda: "received" in app.said() or retried(server, letter))
            assert app.said().count("'n': 7") == 1
            assert server.ask("/dead-letters")["dead_letters"] == []


def retried(server, letter):
    """Retries all that is kept, and says whether it has arrived."""
    for one in server.ask("/dead-letters")["dead_letters"]:
        server.ask(f"/dead-letters/{one['id']}/retry", method="POST")
    time.sleep(0.2)
    return False


def waits(holds):
    ends = time.monotonic() + support.SOON_S
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)
