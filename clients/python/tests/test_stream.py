"""The producers' stream, with a server that stays, goes and comes back."""

import asyncio
import json
import tempfile

import pytest

import support
from signalpost import Event, EventRefused, Problem, Signalpost, Unreachable
from support import Server, connect, receive

pytestmark = pytest.mark.anyio


async def test_what_many_tasks_publish_at_once_arrives_in_their_order(server):
    async with Signalpost(server.url) as signalpost, connect(server.port, 7001) as reader, signalpost.stream() as stream:
        receipts = await asyncio.gather(*(stream.tell(7001, number) for number in range(1000)))
        assert [receipt.posted for receipt in receipts] == [1] * 1000
        assert [json.loads(await receive(reader)) for _ in range(1000)] == list(range(1000))


async def test_an_event_has_the_receipt_and_the_errors_of_a_post(server):
    match = {"request_id": 42, "rider_id": 7002, "driver_id": 7003, "pool_id": "stream"}
    async with Signalpost(server.url) as signalpost, signalpost.stream() as stream:
        receipt = await stream.publish("pooling.match.found", match, id="stream-1", source="/matcher")
        assert (receipt.id, receipt.source, receipt.recipients) == ("stream-1", "/matcher", 2)
        assert (await stream.send(Event("pooling.match.found", match, id="stream-1", source="/matcher"))).duplicate
        with pytest.raises(EventRefused, match="missing_field"):
            await stream.publish("pooling.match.found", {"request_id": 42})
        with pytest.raises(Problem, match="`time` is not an RFC 3339 timestamp"):
            await stream.publish("no.such", 1, time="yesterday")
        with pytest.raises(Problem, match="user id"):
            await stream.tell("", 1)
        assert (await stream.publish("no.such", None)).note == "no policy wanted this event type"


async def test_a_stream_outlives_a_restart_without_losing_or_doubling_a_message():
    with tempfile.TemporaryDirectory() as store:
        first = Server(store_dir=store)
        port = first.port
        try:
            async with Signalpost(f"http://127.0.0.1:{port}/api/pool") as signalpost, signalpost.stream() as stream:
                tasks = [asyncio.create_task(stream.tell(7004, number)) for number in range(900)]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                # Not as an operator does: what was read may be published without an answer.
                first.kill()
                with Server(port, store_dir=store), support.without_resource_warnings():
                    receipts = await asyncio.gather(*tasks)
                    assert all(receipt.posted == 1 or receipt.duplicate for receipt in receipts)
                    async with connect(port, 7004) as reader:
                        assert [json.loads(await receive(reader)) for _ in tasks] == list(range(900))
                        await support.is_silent(reader)
        finally:
            first.__exit__()


async def test_a_stream_that_can_not_be_opened_says_why():
    with Server() as server:
        url = server.url
        async with Signalpost(url.replace("/api/pool", "/elsewhere")) as signalpost:
            with pytest.raises(Problem, match="404"):
                async with signalpost.stream():
                    pass
    async with Signalpost(url, deadline_s=0.5) as signalpost:
        with pytest.raises(Unreachable, match="Does `signalpost serve` run there"):
            async with signalpost.stream():
                pass


async def test_a_closed_stream_answers_nobody(server):
    async with Signalpost(server.url) as signalpost:
        async with signalpost.stream() as stream:
            pass
        with pytest.raises(Unreachable, match="the stream is closed"):
            await stream.tell(1, 1)
