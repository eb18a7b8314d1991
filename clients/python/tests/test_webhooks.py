"""`verify`, by the vector that Standard Webhooks publishes, by its own library, and in an application."""

import base64
import hmac
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
import standardwebhooks

import support
from signalpost import InvalidWebhook, verify, webhooks

# The example of the specification's own test suites.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
SENT = 1614265330
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
HEADERS = {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": str(SENT), "webhook-signature": SIGNATURE}
OTHER = "whsec_" + base64.b64encode(b"another secret of 24 bytes").decode()


def check(headers=HEADERS, body=BODY, secrets=SECRET, now=SENT, **options):
    return verify(headers, body, secrets, now=now, **options)


def refused(reason, **arguments):
    with pytest.raises(InvalidWebhook, match=reason):
        check(**arguments)


def test_the_published_vector_is_verified():
    webhook = check()
    assert (webhook.id, webhook.timestamp, webhook.body) == (HEADERS["webhook-id"], SENT, BODY)
    assert webhook.json() == {"test": 2432232314}


def test_a_secret_is_read_with_and_without_its_prefix_and_the_body_as_bytes_or_text():
    assert check(secrets=SECRET.removeprefix("whsec_")).id == check(secrets=f" {SECRET}\n").id == HEADERS["webhook-id"]
    assert check(body=BODY.decode()).body == check(body=bytearray(BODY)).body == BODY


@pytest.mark.parametrize("name", [name for name in HEADERS])
def test_a_header_that_is_missing_or_empty_is_named(name):
    refused(f"no header {name}", headers={key: value for key, value in HEADERS.items() if key != name})
    refused(f"no header {name}", headers=HEADERS | {name: " "})


def test_headers_are_found_in_any_case():
    assert check(headers={name.title(): value for name, value in HEADERS.items()}).id == HEADERS["webhook-id"]


def test_each_signed_part_is_covered_by_the_signature():
    refused("no signature", body=BODY + b" ")
    refused("no signature", body=b"")
    refused("no signature", headers=HEADERS | {"webhook-id": "msg_other"})
    refused("no signature", headers=HEADERS | {"webhook-timestamp": str(SENT + 1)})
    # The parts can't be shifted against each other.
    refused("no signature", headers=HEADERS | {"webhook-id": f"{HEADERS['webhook-id']}.{SENT}"}, body=BODY)


def test_the_tolerance_holds_in_both_directions_and_to_the_second():
    for now in (SENT - 300, SENT, SENT + 300):
        check(now=now)
    refused("301 s old", now=SENT + 301)
    refused("301 s in the future", now=SENT - 301)
    refused("11 s old", now=SENT + 11, tolerance_s=10)
    with pytest.raises(InvalidWebhook, match="old"):
        verify(HEADERS, BODY, SECRET)


@pytest.mark.parametrize("timestamp", ["", "x", "-1614265330", "1614265330.0", "16_14", "١٦١٤٢٦٥٣٣٠", "1e9", "0x6", "9" * 13, "9" * 5000])
def test_a_timestamp_is_whole_seconds(timestamp):
    refused("webhook-timestamp", headers=HEADERS | {"webhook-timestamp": timestamp})


def test_while_a_secret_is_replaced_the_old_and_the_new_one_verify():
    for secrets in ([SECRET, OTHER], [OTHER, SECRET], (secret for secret in (OTHER, SECRET))):
        check(secrets=secrets)
    refused("no signature", secrets=[OTHER])
    both = f"v1,{base64.b64encode(b'0' * 32).decode()} {SIGNATURE}"
    check(headers=HEADERS | {"webhook-signature": both})


def test_signatures_of_other_versions_and_broken_ones_are_passed_over():
    value = SIGNATURE.removeprefix("v1,")
    for others in ("v1a,AAAA", "v1", "v1,", "v1,%%%", "nonsense", ","):
        check(headers=HEADERS | {"webhook-signature": f"{others} {SIGNATURE}"})
        refused("no signature", headers=HEADERS | {"webhook-signature": others})
    refused("no signature", headers=HEADERS | {"webhook-signature": f"v1a,{value}"})
    refused("no signature", headers=HEADERS | {"webhook-signature": value})
    # A part of the right signature is not one.
    refused("no signature", headers=HEADERS | {"webhook-signature": "v1," + base64.b64encode(base64.b64decode(value)[:16]).decode()})


def test_arguments_that_cannot_be_right_are_not_the_senders_fault():
    for secrets, reason in (([], "no secret"), ("", "empty"), ("whsec_", "empty"), ("whsec_geheim!", "base64"), ([SECRET, "é"], "base64")):
        with pytest.raises(ValueError, match=reason) as raised:
            check(secrets=secrets)
        assert "geheim" not in str(raised.value)
    with pytest.raises(TypeError, match="request.body"):
        check(body={"test": 2432232314})
    with pytest.raises(TypeError, match="NoneType"):
        check(secrets=[None])


def test_all_signatures_are_compared_with_all_secrets_in_constant_time(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(webhooks.hmac, "compare_digest", lambda *pair: compared.append(pair) or real(*pair))
    check(headers=HEADERS | {"webhook-signature": f"{SIGNATURE} v1,AAAA {SIGNATURE}"}, secrets=[SECRET, OTHER])
    assert len(compared) == 6


def test_what_the_specifications_own_library_signs_is_verified():
    theirs = standardwebhooks.Webhook(OTHER)
    now = datetime.now(UTC)
    for body in (b"{}", b"", "grüße".encode(), bytes(range(128))):
        headers = {
            "webhook-id": "m1",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": theirs.sign("m1", now, body.decode()),
        }
        assert verify(headers, body, OTHER).body == body
    assert theirs.verify(BODY, headers | {"webhook-signature": theirs.sign("m1", now, BODY.decode())}) == {"test": 2432232314}


def test_the_file_needs_the_standard_library_only():
    script = f"import runpy; assert runpy.run_path({str(Path(webhooks.__file__))!r})['verify']"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)


def test_the_example_of_a_sink_takes_what_is_signed_once():
    def send(id, body, secret):
        now = datetime.now(UTC)
        signature = standardwebhooks.Webhook(secret).sign(id, now, body)
        headers = {"webhook-id": id, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
        request = urllib.request.Request(f"{app.url}/signalpost", body.encode(), headers | {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=support.SOON_S) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    examples = support.ROOT / "clients/python/examples"
    with support.App(examples, {"SINK_SECRETS": f"{SECRET} {OTHER}"}, "uvicorn sink:app") as app:
        assert send("m1", '{"n":1}', SECRET) == 204
        assert send("m2", '{"n":2}', OTHER) == 204
        assert send("m1", '{"n":1}', SECRET) == 204
        status, reason = send("m3", '{"n":3}', "whsec_" + base64.b64encode(b"a stranger's secret").decode())
        assert status == 401 and "no signature" in reason
        said = app.said()
    assert [said.count(f"received {{'n': {n}}}") for n in (1, 2, 3)] == [1, 1, 0], said
