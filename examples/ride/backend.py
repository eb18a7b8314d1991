"""The backend of the ride. It publishes what happens; what riders and drivers do on their sockets comes back to it through a sink.

Everything is in memory: this shows how the parts talk to each other, and not how to keep data.
"""

import asyncio
import os
from collections import deque
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from signalpost import InvalidWebhook, Signalpost, verify

import rides
from rides import NAMES, PLACES, Pool, Ride
from tokens import make_token

HERE = Path(__file__).parent
# The panel of what the backend does is a reader as everybody else.
BACKSTAGE = "backstage"
# A sink sends a webhook again until it is answered. A real application keeps the ids of a day in the transaction that handles the event.
HANDLED_MAX = 10_000

server = Signalpost(os.environ["SIGNALPOST_URL"])
sink_secrets = os.environ["SINK_SECRETS"].split()
token_secret = os.environ["TOKEN_SECRET"].encode()
handled: deque[str] = deque(maxlen=HANDLED_MAX)
online: set[int] = set()
state = rides.State()
# A task that nobody refers to may be collected before it is done.
tasks: set[asyncio.Task] = set()


@asynccontextmanager
async def lifespan(_):
    async with server:
        yield


app = FastAPI(lifespan=lifespan)


async def publish(type: str, data: dict, *, id: str | None = None, shown: bool = True) -> None:
    """Publishes an event, and shows it backstage. With an id of its own it happens once, however often the sink's event comes."""
    receipt = await server.publish(type, data, id=id, source="/ride", time=datetime.now(UTC))
    if shown and not receipt.duplicate:
        told = f"{receipt.recipients} told" if receipt.recipients else "nobody told"
        await server.tell(BACKSTAGE, {"way": "published", "type": type, "about": told})


# What the pages ask for.


class Asked(BaseModel):
    rider_id: int
    pickup: str
    dropoff: str


class Position(BaseModel):
    driver_id: int
    at: float = Field(ge=0, le=1)


@app.get("/token")
async def token(user: str) -> str:
    """Returns a token for one of the people of this page. A real application asks who is there first."""
    if user not in {str(id) for id in NAMES} | {BACKSTAGE}:
        raise HTTPException(403, "nobody of this name takes part")
    return make_token(token_secret, user)


@app.post("/state", status_code=204)
async def now(user: int) -> None:
    """Tells a page what there is: at its start, and after a gap. It comes over the socket, so that what came before it is older than it."""
    await server.tell(user, {"type": "state", **state.of(user)})


@app.post("/rides", status_code=201)
async def ask(asked: Asked) -> dict:
    if asked.rider_id not in rides.RIDERS or {asked.pickup, asked.dropoff} - PLACES.keys():
        raise HTTPException(422, "there is no such rider or place")
    if PLACES[asked.pickup] >= PLACES[asked.dropoff]:
        raise HTTPException(422, f"the car drives from {next(iter(PLACES))} to {list(PLACES)[-1]}: choose a place further on")
    if state.of(asked.rider_id)["ride"]:
        raise HTTPException(409, "you have a ride already")
    drivers = [driver for driver in rides.DRIVERS if driver in online]
    if not drivers:
        raise HTTPException(503, "no driver is online")
    ride = state.ask(asked.rider_id, asked.pickup, asked.dropoff)
    await publish("pooling.request.created", {**ride.public(), "candidate_driver_ids": drivers})
    task = asyncio.create_task(expire(ride))
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return ride.public()


async def expire(ride: Ride) -> None:
    """Ends a request that nobody has answered: after this time no driver can."""
    await asyncio.sleep(rides.OFFER_S)
    await refuse(ride.request_id, "no driver has answered")


async def refuse(request_id: int, why: str) -> None:
    if ride := state.refuse(request_id):
        refused = {"type": "refused", "request_id": request_id, "why": why}
        await server.tell(ride.rider_id, refused, idempotency_key=f"refused-{request_id}")


@app.post("/position", status_code=204)
async def move(position: Position) -> None:
    """The driver's phone says where the car is. The riders in it are told, and at the ends of the way what that means."""
    pool = state.pool_of(position.driver_id)
    if not pool:
        raise HTTPException(409, "you have no riders")
    for type, data, id in pool.move(position.at):
        await publish(type, data, id=id, shown=type != "pooling.driver.location")
    if pool.is_over:
        state.end(pool)


# What users did, as the sink tells it.


@app.post("/signalpost", status_code=204)
async def hear(request: Request) -> None:
    try:
        webhook = verify(request.headers, await request.body(), sink_secrets)
    except InvalidWebhook as reason:
        raise HTTPException(401, str(reason)) from reason
    if webhook.id in handled:
        return
    event = webhook.json()
    about = await handle(event["type"], event["data"])
    handled.append(webhook.id)
    if about:
        await server.tell(BACKSTAGE, {"way": "heard", "type": event["type"], "about": about})


async def handle(type: str, data: dict) -> str | None:
    """Does what an event asks for, and returns what the panel says about it. If it fails, the sink brings the event again."""
    match type:
        case "signalpost.session.opened" | "signalpost.session.closed":
            if not data["user_id"].isdigit():
                return None
            user = int(data["user_id"])
            (online.add if data["open_sessions"] else online.discard)(user)
            return f"{NAMES.get(user, user)}, {data['open_sessions']} open"
        case "pooling.offer.accepted":
            if joined := state.accept(data["request_id"], data["driver_id"]):
                await matched(*joined)
            return f"by {NAMES[data['driver_id']]}, request {data['request_id']}"
        case "pooling.offer.declined":
            await refuse(data["request_id"], "the driver has declined")
            return f"by {NAMES[data['driver_id']]}, request {data['request_id']}"
        case "pooling.chat.message":
            state.wrote(data["pool_id"], data["from"], data["text"])
            return f"{NAMES[data['from']]}: {data['text']}"
    return None


async def matched(ride: Ride, pool: Pool) -> None:
    """Tells the rider and the driver, then those who share the car, and everybody what they pay now."""
    ids = {"request_id": ride.request_id, "pool_id": pool.pool_id}
    data = {**ids, "rider_id": ride.rider_id, "driver_id": pool.driver_id, "pool": pool.public()}
    await publish("pooling.match.found", data, id=f"match-{ride.request_id}")
    await publish("pooling.match.accepted", {**ids, "by": ride.rider_id, "pool": pool.public()}, id=f"accepted-{ride.request_id}")
    fare = {"pool_id": pool.pool_id, "shares": pool.shares()}
    await publish("pooling.fare.updated", fare, id=f"fare-{ride.request_id}")


# The page, and the client as it is built.


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(HERE / "page/index.html")


@app.get("/settings")
async def settings() -> dict:
    return {"server": os.environ["SIGNALPOST_URL"], "places": PLACES, "riders": rides.RIDERS, "drivers": rides.DRIVERS, "names": NAMES}


app.mount("/page", StaticFiles(directory=HERE / "page"))
app.mount("/signalpost-client", StaticFiles(directory=HERE.parents[1] / "clients/js/dist"))
