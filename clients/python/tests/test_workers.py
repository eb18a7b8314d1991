"""What the migration is for: two uvicorn workers. The original class loses messages there, and the shim does not."""

import asyncio
import os
import random
import signal

import pytest

import support
from support import App, application, closed, connect, is_silent, receive

pytestmark = pytest.mark.anyio

USERS = 100
MATCHES = 500
SEED = 42


async def count(app):
    """Sends matches, two messages each, and returns what each user should have read, and what was read until nothing more came."""
    chance = random.Random(SEED)
    expected = {user: [] for user in range(1, USERS + 1)}
    clients = {user: await connect(app.port, user) for user in expected}
    read = {user: [] for user in expected}

    async def reads(user):
        async for frame in clients[user]:
            read[user].append(support.json.loads(frame)["request_id"])

    readers = [asyncio.create_task(reads(user)) for user in expected]
    for request in range(MATCHES):
        rider, driver = chance.sample(range(1, USERS + 1), 2)
        await asyncio.to_thread(app.post, f"/requests/{request}/match?rider_id={rider}&driver_id={driver}&pool_id=7")
        expected[rider].append(request)
        expected[driver].append(request)
    previous = -1
    while previous != (previous := sum(map(len, read.values()))):
        await asyncio.sleep(support.NEVER_S)
    for client in clients.values():
        await client.close()
    await asyncio.gather(*readers)
    return expected, read


def report(capsys, name, expected, read):
    sent, arrived = (sum(map(len, messages.values())) for messages in (expected, read))
    sentence = f"{name}: {arrived} of {sent} messages read by {USERS} users, {sent - arrived} lost ({(sent - arrived) / sent:.0%})"
    with capsys.disabled():
        print(f"\nok  two workers, seed {SEED}: {sentence}")
    return sent, sent - arrived


async def test_the_original_loses_messages_with_two_workers(tmp_path, capsys):
    with App(application(tmp_path), command=support.UVICORN) as app:
        expected, read = await count(app)
    sent, lost = report(capsys, "the original", expected, read)
    assert sent == 2 * MATCHES
    # Half of them on average. How the system spreads connections over the workers is its own affair.
    assert sent / 10 < lost < sent * 9 / 10
    # What did arrive is right.
    assert all(set(read[user]) <= set(expected[user]) for user in expected)


async def test_the_shim_loses_doubles_and_reorders_none_with_two_workers(tmp_path, server, capsys):
    with App(application(tmp_path, support.IMPORTS), {"SIGNALPOST_URL": server.url}, support.UVICORN) as app:
        expected, read = await count(app)
    assert report(capsys, "the shim", expected, read) == (2 * MATCHES, 0)
    assert read == expected
