"""The whole way back: a driver answers on a socket, a policy makes an event of it, and the example of a backend verifies what its sink sends."""

import json
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
