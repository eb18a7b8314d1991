"""Publishing: against a server, and against fakes that answer as a server in trouble does."""

import asyncio
import json
import ssl
import subprocess
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote

import pytest

import support
from signalpost import BatchRefused, Dropped, Event, EventRefused, Fault, Problem, Receipt, Refusal, Signalpost, SignalpostError, Unreachable
from support import Server, connect, fake, receive

pytestmark = pytest.mark.anyio

MATCH = {"request_id": 42, "rider_id": 1001, "driver_id": 2002, "pool_id": 7}
RECEIPT = {"id": "e1", "source": "/", "duplicate": False, "policies": [], "recipients": 0, "posted": 0}
ACCEPTED = (202, {"content-type": "application/json"}, json.dumps(RECEIPT))


def problem(status, code="", detail="because", **headers):
    document = {"type": "about:blank", "title": "x", "status": status, "code": code, "detail": detail}
    return status, {"content-type": "application/problem+json"} | headers, json.dumps(document)


def batch(status, *items):
    return status, {"content-type": "application/json"}, json.dumps(items)


# --- what a server answers ---


async def test_a_match_is_routed_and_its_receipt_says_to_whom(server):
    async with Signalpost(server.url) as signalpost, connect(server.port, 5001) as rider:
        receipt = await signalpost.publish("pooling.match.found", MATCH | {"rider_id": 5001, "driver_id": 5002}, id="m1", source="/matcher")
        assert (receipt.id, receipt.source, receipt.duplicate, receipt.recipients, receipt.posted) == ("m1", "/matcher", False, 2, 2)
        assert [(policy.name, policy.outcome, policy.deliveries) for policy in receipt.policies] == [("pooling", "routed", 1)]
        assert receipt.dropped == () and receipt.note is None
        assert (await receive(rider)).startswith('{"type":"pooling_match","request_id":42,"status":"matched"')
        again = await signalpost.publish("pooling.match.found", MATCH | {"rider_id": 5001, "driver_id": 5002}, id="m1", source="/matcher")
        assert again.duplicate and again.posted == 0
        await support.is_silent(rider)


async def test_an_event_that_its_policy_refuses_raises_the_policys_reason(server):
    async with Signalpost(server.url) as signalpost:
        with pytest.raises(EventRefused, match=r"event r1 reached nobody: pooling 0\.1\.0 refused it: `rider_id` is missing.*\(missing_field\)") as raised:
            await signalpost.publish("pooling.match.found", {"request_id": 42}, id="r1")
        assert raised.value.receipt.policies[0].refusal.code == "missing_field"
        corrected = await signalpost.publish("pooling.match.found", MATCH, id="r1")
        assert not corrected.duplicate and corrected.posted == 2


async def test_an_event_that_no_policy_wants_has_a_note(server):
    async with Signalpost(server.url) as signalpost:
        receipt = await signalpost.publish("no.such.event", None)
    assert receipt.policies == () and receipt.note == "no policy wanted this event type"


async def test_all_attributes_of_an_event_are_taken(server):
    sent = Event("no.such", [1], subject="s", time=datetime(2026, 1, 1, tzinfo=UTC), extensions={"tenant": "t", "n": 7, "ok": True})
    async with Signalpost(server.url) as signalpost:
        assert [receipt.id for receipt in await signalpost.publish_batch([sent])] == [sent.id]
        await signalpost.publish("x", 1, subject="s", time="2026-01-01T00:00:00Z", extensions={"tenant": "t"})
        with pytest.raises(ValueError, match="no time zone"):
            await signalpost.publish("x", 1, time=datetime(2026, 1, 1))
        for name in ("id", "data", "specversion", "subject"):
            with pytest.raises(ValueError, match=f"'{name}' is no extension"):
                await signalpost.publish("x", 1, extensions={name: "x"})
        with pytest.raises(Problem, match="400 attribute: .*time"):
            await signalpost.publish("x", 1, time="yesterday")


async def test_a_batch_is_published_in_order_and_returns_its_receipts_in_order(server):
    events = [Event("pooling.match.found", MATCH | {"rider_id": 5101, "driver_id": 5102, "request_id": n, "pool_id": n}) for n in range(20)]
    async with Signalpost(server.url) as signalpost, connect(server.port, 5101) as rider:
        receipts = await signalpost.publish_batch(events)
        assert [receipt.id for receipt in receipts] == [event.id for event in events]
        assert [json.loads(await receive(rider))["request_id"] for _ in events] == list(range(20))
        assert all(receipt.duplicate for receipt in await signalpost.publish_batch(events))
        assert await signalpost.publish_batch([]) == []


async def test_a_batch_that_is_refused_in_part_raises_and_has_a_result_for_each_event(server):
    good, bad, refused = Event("no.such", 1), Event("no.such", 1, time="yesterday"), Event("pooling.match.found", {})
    async with Signalpost(server.url) as signalpost:
        with pytest.raises(BatchRefused, match=r"2 of 3 events were refused, .*\[1\] HTTP 400 attribute: .*\[2\] event .* reached nobody") as raised:
            await signalpost.publish_batch([good, bad, refused])
        first, second, third = raised.value.results
        assert isinstance(first, Receipt) and first.id == good.id
        assert isinstance(second, Problem) and second.code == "attribute"
        assert isinstance(third, EventRefused) and third.receipt.id == refused.id
        # What was accepted is not published again by a caller who sends everything again.
        with pytest.raises(BatchRefused) as raised:
            await signalpost.publish_batch([good, bad])
        assert raised.value.results[0].duplicate
        with pytest.raises(BatchRefused, match=r"5 of 5 events were refused.*and 2 more"):
            await signalpost.publish_batch([bad] * 5)


async def test_a_message_is_told_once_for_an_idempotency_key_and_keeps_its_terms(server):
    async with Signalpost(server.url) as signalpost, connect(server.port, 5201) as user:
        for _ in range(2):
            receipt = await signalpost.tell(5201, {"text": "grüße"}, idempotency_key="k")
        assert receipt.duplicate
        assert (await signalpost.tell(5201, "next", ttl_ms=60_000, keep_ms=0, collapse_key="a&b=c")).posted == 1
        assert [await receive(user), await receive(user)] == ['{"text":"grüße"}', '"next"']
        away = await signalpost.tell(5299, 1, keep_ms=0)
        assert away.dropped == (Dropped("away", 1, ("5299",)),)


@pytest.mark.parametrize("user", [5301, "Jürgen M", "a/b", "?x=1#y", "100%", "..a", "日本"])
async def test_every_user_id_reaches_that_user(server, user):
    async with Signalpost(server.url) as signalpost, connect(server.port, quote(str(user), safe="")) as client:
        await signalpost.tell(user, [1])
        assert await receive(client) == "[1]"


@pytest.mark.parametrize(("user", "error"), [(".", ValueError), ("..", ValueError), ("", ValueError), (True, TypeError), (None, TypeError), (1.5, TypeError)])
async def test_a_user_id_that_cannot_be_one_is_not_sent(user, error):
    with pytest.raises(error, match="id"):
        await Signalpost("http://127.0.0.1:9").tell(user, [1])


async def test_values_that_json_does_not_have_are_not_sent():
    signalpost = Signalpost("http://127.0.0.1:9")
    for value, error in ((float("nan"), ValueError), (datetime.now(UTC), TypeError), ({1, 2}, TypeError)):
        with pytest.raises(error, match="JSON"):
            await signalpost.tell(1, value)
        with pytest.raises(error, match="JSON"):
            await signalpost.publish("x", value)


async def test_what_is_too_large_is_refused_with_the_limits_name(server):
    async with Signalpost(server.url) as signalpost:
        with pytest.raises(Problem, match=r"413 event_too_large: .*events\.event_bytes_max.*raise the limit"):
            await signalpost.tell(1, "x" * 262_144)
        with pytest.raises(Problem, match=r"413 event_too_large"):
            await signalpost.publish("x", "x" * 262_144)
        with pytest.raises(Problem, match=r"413 batch_too_large: .*events\.batch_max"):
            await signalpost.publish_batch([Event("x", 1)] * 1001)
        with pytest.raises(Problem, match="413 body_too_large"):
            await signalpost.publish("x", "x" * 4_194_304)


async def test_a_missing_or_a_wrong_key_is_refused_with_how_to_get_one(tmp_path):
    said = subprocess.run([support.BINARY, "token", "--api-key", "backend"], check=True, capture_output=True, text=True)
    key = said.stdout.split()[0]
    (tmp_path / "keys.toml").write_text(said.stderr[said.stderr.index("[[auth.keys]]") :])
    with Server(config=str(tmp_path / "keys.toml")) as server:
        for wrong in (None, "signalpost_wrong"):
            async with Signalpost(server.url, wrong) as signalpost:
                with pytest.raises(Problem, match=r"401 unauthorized: .*SIGNALPOST_KEY.*signalpost token --api-key") as raised:
                    await signalpost.tell(1, 1)
                assert "signalpost_wrong" not in str(raised.value)
        async with Signalpost(server.url, f" {key}\n") as signalpost:
            assert (await signalpost.tell(1, 1)).posted == 1
            assert key not in repr(signalpost)


async def test_address_and_key_come_from_the_environment(server, monkeypatch):
    assert Signalpost().url == "http://127.0.0.1:8080/api/pool"
    monkeypatch.setenv("SIGNALPOST_URL", server.url + "/")
    async with Signalpost() as signalpost:
        assert (await signalpost.publish("no.such", 1)).note
    monkeypatch.setenv("SIGNALPOST_KEY", "k")
    async with fake(ACCEPTED) as (made, url), Signalpost(url) as signalpost, Signalpost(url, "other") as other:
        await signalpost.publish("x", 1)
        await other.publish("x", 1)
    assert [headers["authorization"] for _, headers, _ in made.requests] == ["bearer k", "bearer other"]


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ws://127.0.0.1/api/pool", "http://", "http://h/api?x=1", "ftp://h/"])
async def test_an_address_that_cannot_be_one_is_refused_at_once(url):
    with pytest.raises(ValueError, match="as in http://127.0.0.1:8080/api/pool"):
        Signalpost(url)


async def test_a_key_that_cannot_be_one_is_refused_without_repeating_it():
    for key in ("geheim\nx", "geheim x", "geheimé"):
        with pytest.raises(ValueError, match="token --api-key") as raised:
            Signalpost("http://h", key)
        assert "geheim" not in str(raised.value)


# --- what is tried again ---


@pytest.mark.parametrize(
    "trouble",
    [None, problem(503, "stopping"), problem(429), problem(408, "body_deadline"), problem(409, "under_way"), (502, {}, "<html>bad gateway"), (504, {}, "")],
)
async def test_what_may_pass_is_tried_again_with_the_same_event(trouble):
    async with fake(trouble, trouble, ACCEPTED) as (made, url), Signalpost(url, "k") as signalpost:
        assert (await signalpost.publish("x", {"a": 1})).id == "e1"
        first, *others = made.requests
        assert len(others) == 2 and all(other == first for other in others)
        assert json.loads(first[2])["id"]


async def test_a_message_keeps_its_idempotency_key_and_another_message_has_another():
    async with fake(None, ACCEPTED) as (made, url), Signalpost(url) as signalpost:
        await signalpost.tell(1, 1)
        await signalpost.tell(1, 1)
    keys = [headers["idempotency-key"] for _, headers, _ in made.requests]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 405, 413, 415, 500, 501])
async def test_what_does_not_pass_is_tried_once(status):
    async with fake(problem(status, "some_code")) as (made, url), Signalpost(url) as signalpost:
        for call in (signalpost.publish("x", 1), signalpost.tell(1, 1), signalpost.publish_batch([Event("x", 1)])):
            with pytest.raises(Problem) as raised:
                await call
            assert raised.value.status == status
        assert len(made.requests) == 3


async def test_another_conflict_is_not_tried_again():
    async with fake(problem(409, "policy_missing")) as (made, url), Signalpost(url) as signalpost:
        with pytest.raises(Problem, match="409 policy_missing"):
            await signalpost.publish("x", 1)
        assert len(made.requests) == 1


async def test_the_number_of_tries_is_bounded():
    async with fake(problem(503, "too_many_bodies")) as (made, url), Signalpost(url, attempts_max=3) as signalpost:
        with pytest.raises(Problem, match="503 too_many_bodies") as raised:
            await signalpost.publish("x", 1)
        assert len(made.requests) == 3
        assert raised.value.__notes__[0].startswith("It was tried 3 times in ")
    async with fake(None) as (made, url), Signalpost(url, attempts_max=1) as signalpost:
        with pytest.raises(Unreachable):
            await signalpost.publish("x", 1)
        assert len(made.requests) == 1


async def test_the_time_is_bounded_when_a_server_is_silent():
    began = time.monotonic()
    async with fake(...) as (made, url), Signalpost(url, deadline_s=0.5) as signalpost:
        with pytest.raises(Unreachable, match="took too long"):
            await signalpost.publish("x", 1)
    assert 0.5 <= time.monotonic() - began < 5
    assert len(made.requests) == 1


async def test_retry_after_is_honoured_in_seconds_and_as_a_date():
    # A date has no fractions of a second.
    for header, least_s in ((lambda: "1", 1.0), (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True), 0.9), (lambda: "soon", 0.0)):
        value = header()
        began = time.monotonic()
        async with fake(problem(503, **{"retry-after": value}), ACCEPTED) as (made, url), Signalpost(url) as signalpost:
            await signalpost.publish("x", 1)
            assert len(made.requests) == 2
        assert least_s <= time.monotonic() - began < least_s + 5, value


async def test_a_retry_after_beyond_the_deadline_is_not_waited_for():
    began = time.monotonic()
    async with fake(problem(503, **{"retry-after": "3600"})) as (made, url), Signalpost(url) as signalpost:
        with pytest.raises(Problem):
            await signalpost.publish("x", 1)
        assert len(made.requests) == 1
    assert time.monotonic() - began < 5


async def test_only_the_events_of_a_batch_that_may_pass_are_sent_again():
    events = [Event("x", n, id=str(n)) for n in range(4)]
    under_way = json.loads(problem(409, "under_way")[2])
    wrong = json.loads(problem(400, "data")[2])
    answers = [batch(207, RECEIPT | {"id": "0"}, under_way, wrong, under_way), batch(207, RECEIPT | {"id": "1"}, under_way), batch(202, RECEIPT | {"id": "3"})]
    async with fake(*answers) as (made, url), Signalpost(url) as signalpost:
        with pytest.raises(BatchRefused, match="1 of 4") as raised:
            await signalpost.publish_batch(events)
        sent = [[event["id"] for event in json.loads(body)] for _, _, body in made.requests]
        assert sent == [["0", "1", "2", "3"], ["1", "3"], ["3"]]
        assert [getattr(result, "id", getattr(result, "code", None)) for result in raised.value.results] == ["0", "1", "data", "3"]
    async with fake(batch(400, under_way)) as (made, url), Signalpost(url, attempts_max=3) as signalpost:
        with pytest.raises(BatchRefused, match="1 of 1"):
            await signalpost.publish_batch(events[:1])
        assert len(made.requests) == 3


async def test_no_server_is_said_with_what_to_start():
    port = support.free_port()
    began = time.monotonic()
    with pytest.raises(Unreachable, match=rf"no answer from http://127\.0\.0\.1:{port}/api/pool: .*signalpost serve"):
        await Signalpost(f"http://127.0.0.1:{port}/api/pool", attempts_max=2).publish("x", 1)
    assert time.monotonic() - began < 5


async def test_a_server_that_restarts_loses_no_event():
    async with Signalpost("http://127.0.0.1:1") as signalpost:
        with Server() as first:
            signalpost.url = first.url
            assert (await signalpost.publish("no.such", 1, id="a")).note
            assert await asyncio.to_thread(first.stop) == 0
        publishing = asyncio.create_task(signalpost.publish("no.such", 1, id="b"))
        await asyncio.sleep(0.5)
        assert not publishing.done()
        with await asyncio.to_thread(Server, first.port):
            assert (await publishing).id == "b"


@asynccontextmanager
async def losing_answers(server, count):
    """Yields the address of a proxy that passes all requests on, and loses the first answers on their way back."""
    left = count

    async def handle(reader, writer):
        nonlocal left
        theirs, ours = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            while request := await reader.read(65_536):
                ours.write(request)
                answer = await theirs.read(65_536)
                if left:
                    left -= 1
                    return
                writer.write(answer)
        finally:
            ours.close()
            writer.close()

    proxy = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with proxy:
        yield server.url.replace(str(server.port), str(proxy.sockets[0].getsockname()[1]))


async def test_what_is_sent_again_after_a_lost_answer_arrives_once(server):
    async with losing_answers(server, 2) as url, Signalpost(url) as signalpost, connect(server.port, 5401) as user:
        receipt = await signalpost.tell(5401, "told")
        assert receipt.duplicate
        assert await receive(user) == '"told"'
    async with losing_answers(server, 1) as url, Signalpost(url) as signalpost, connect(server.port, 5402) as user:
        assert (await signalpost.publish("pooling.match.found", MATCH | {"rider_id": 5402})).duplicate
        assert json.loads(await receive(user))["type"] == "pooling_match"
        await support.is_silent(user)
    async with losing_answers(server, 1) as url, Signalpost(url) as signalpost:
        # The reason of a refusal is not lost with the answer.
        with pytest.raises(EventRefused, match="`request_id` is missing"):
            await signalpost.publish("pooling.match.found", {})


async def test_a_certificate_that_is_not_trusted_is_not_tried_again(tmp_path):
    pem = tmp_path / "both.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", pem, "-out", tmp_path / "cert.pem"]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", pem)
    handshakes = 0

    async def handle(reader, writer):
        writer.close()

    class Counted(asyncio.StreamReaderProtocol):
        def __init__(self):
            nonlocal handshakes
            handshakes += 1
            super().__init__(asyncio.StreamReader(), handle)

    server = await asyncio.get_running_loop().create_server(Counted, "127.0.0.1", 0, ssl=context)
    async with server, Signalpost(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as signalpost:
        with pytest.raises(Unreachable, match="(?i)certificate"):
            await signalpost.publish("x", 1)
    assert handshakes == 1


# --- answers of something else ---


async def test_an_answer_that_is_no_receipt_is_said():
    for answer in ((200, {}, "<html>welcome"), (202, {}, "{}"), (202, {}, "[]"), (204, {}, ""), (202, {}, '{"id":1}')):
        async with fake(answer) as (_, url), Signalpost(url) as signalpost:
            for call in (signalpost.publish("x", 1), signalpost.publish_batch([Event("x", 1)])):
                with pytest.raises(SignalpostError, match="the address of a Signalpost"):
                    await call


async def test_a_refusal_of_something_else_is_shown_in_part():
    async with fake((403, {}, "<html>\n  blocked " + "x" * 1000)) as (_, url), Signalpost(url) as signalpost:
        with pytest.raises(Problem, match="HTTP 403: this is no answer of Signalpost's: '<html> blocked x") as raised:
            await signalpost.publish("x", 1)
        assert len(str(raised.value)) < 400
    async with fake((404, {}, "")) as (_, url), Signalpost(url) as signalpost:
        with pytest.raises(Problem, match="HTTP 404: there is no explanation.*base path"):
            await signalpost.publish("x", 1)
    async with fake((307, {"location": "https://h/api/pool/events"}, "")) as (_, url), Signalpost(url) as signalpost:
        with pytest.raises(Problem, match="elsewhere: use the address 'https://h/api/pool/events'"):
            await signalpost.publish("x", 1)


async def test_a_receipt_of_a_newer_server_is_read_with_its_own_words():
    policies = [
        {"name": "a", "outcome": "postponed", "until": "2030"},
        {"name": "b", "version": "2", "outcome": "circuit_open", "dead_letter": 7},
        {"name": "c", "version": "2", "outcome": "faulted", "fault": {"kind": "melted", "detail": "it is gone", "digest": 7}},
        {"name": "d", "version": "2", "outcome": "refused", "refusal": {"code": "no", "detail": "never"}},
    ]
    dropped = [{"reason": "unread", "count": 3, "users": ["1"], "more": 2}]
    receipt = Receipt.read(RECEIPT | {"new": 1, "policies": policies, "dropped": dropped, "joins_refused": 2})
    assert [policy.outcome for policy in receipt.policies] == ["postponed", "circuit_open", "faulted", "refused"]
    assert not receipt.refused_by_all
    assert receipt.policies[1].dead_letter == 7
    assert receipt.policies[2].fault == Fault("melted", "it is gone")
    assert receipt.policies[3].refusal == Refusal("no", "never")
    assert receipt.dropped == (Dropped("unread", 3, ("1",)),) and receipt.joins_refused == 2
    failed = Receipt.read(RECEIPT | {"policies": policies[1:]})
    assert failed.refused_by_all
    assert str(EventRefused(failed)) == (
        "event e1 reached nobody: b 2 was not called, because it failed too often in a row; kept as dead letter 7; "
        "c 2 failed on it: it is gone (melted); d 2 refused it: never (no)"
    )


# --- one object ---


async def test_many_tasks_share_one_object(server):
    async with Signalpost(server.url) as signalpost:
        receipts = await asyncio.gather(*(signalpost.publish("no.such", n) for n in range(200)))
    assert len({receipt.id for receipt in receipts}) == 200


def test_one_object_serves_one_event_loop_after_another(server):
    signalpost = Signalpost(server.url)
    for _ in range(3):
        assert asyncio.run(once(signalpost)).note


async def once(signalpost):
    async with signalpost:
        return await signalpost.publish("no.such", 1)


def test_an_object_that_was_not_closed_serves_the_next_event_loop(server):
    async def publish(signalpost):
        return (await signalpost.publish("no.such", 1)).note

    def twice(signalpost):
        return asyncio.run(publish(signalpost)), asyncio.run(publish(signalpost))

    with support.without_resource_warnings():
        first, second = twice(Signalpost(server.url))
    assert first and first == second
