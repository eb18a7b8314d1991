"""Who rides with whom, and where the car is: what a real application has in its database."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

NAMES = {1001: "Ada", 1002: "Ben", 2002: "Dana"}
RIDERS, DRIVERS = [1001, 1002], [2002]

# Places along one street, as shares of its length.
PLACES = {"Harbour": 0.0, "Market": 0.2, "Museum": 0.45, "Station": 0.7, "Airport": 1.0}
# The street's ends, so that positions are degrees as a phone has them.
FROM_LAT, TO_LAT, LON = 52.500, 52.545, 13.405
STREET_S = 45
STREET_CENTS, SHARED = 2400, 0.65
SEATS = 2
# How long a driver may think: the policies `pooling` and `offers` have the same time.
OFFER_S = 30
# A rider is told that the car arrives when this share of the street is left.
ARRIVING = 0.12


@dataclass
class Ride:
    """What one rider asked for."""

    request_id: int
    rider_id: int
    pickup: str
    dropoff: str
    asked_at: float = field(default_factory=time.monotonic)

    def cents(self, is_shared: bool) -> int:
        return round(STREET_CENTS * (PLACES[self.dropoff] - PLACES[self.pickup]) * (SHARED if is_shared else 1))

    def public(self) -> dict:
        return {"request_id": self.request_id, "rider_id": self.rider_id, "pickup": self.pickup, "dropoff": self.dropoff}

    def offer(self) -> dict:
        left_s = max(0.0, self.asked_at + OFFER_S - time.monotonic())
        return {**self.public(), "left_ms": round(left_s * 1000)}


@dataclass
class Pool:
    """A car with its riders."""

    pool_id: int
    driver_id: int
    rides: list[Ride] = field(default_factory=list)
    at: float = 0.0
    status: str = "waiting"
    chat: list[dict] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.status == "completed"

    def shares(self) -> list[dict]:
        is_shared = len(self.rides) > 1
        return [{"rider_id": ride.rider_id, "amount": ride.cents(is_shared) / 100, "currency": "EUR"} for ride in self.rides]

    def stops(self) -> list[dict]:
        """Returns where the car stops for whom, in order."""
        stops = [
            (PLACES[place], kind, place, NAMES[ride.rider_id])
            for ride in self.rides
            for kind, place in (("in", ride.pickup), ("out", ride.dropoff))
        ]
        return [{"at": at, "kind": kind, "place": place, "rider": rider} for at, kind, place, rider in sorted(stops)]

    def public(self) -> dict:
        """Returns what everybody in the car may know: nobody learns what another rider pays."""
        riders = [NAMES[ride.rider_id] for ride in self.rides]
        return {
            "pool_id": self.pool_id,
            "driver": NAMES[self.driver_id],
            "riders": riders,
            "stops": self.stops(),
            "status": self.status,
            "at": self.at,
        }

    def move(self, at: float) -> Iterator[tuple[str, dict, str | None]]:
        """Moves the car, and returns the events that follow: type, data, and an id for what happens once."""
        ids = {"pool_id": self.pool_id, "driver_id": self.driver_id}
        by = {"pool_id": self.pool_id, "by": self.driver_id}
        if self.status == "waiting":
            self.status = "driving"
            yield "pooling.trip.started", by, f"started-{self.pool_id}"
        before, self.at = self.at, at
        lat = FROM_LAT + (TO_LAT - FROM_LAT) * at
        yield "pooling.driver.location", {**ids, "lat": round(lat, 6), "lon": LON, "at": at}, None
        for stop in self.stops():
            near = stop["at"] - ARRIVING
            if before < near <= at:
                eta_s = round(ARRIVING * STREET_S)
                data = {**ids, "eta_s": eta_s, "place": stop["place"], "rider": stop["rider"], "kind": stop["kind"]}
                yield "pooling.driver.arriving", data, f"arriving-{self.pool_id}-{stop['rider']}-{stop['kind']}"
        if at >= max(stop["at"] for stop in self.stops()):
            self.status = "completed"
            yield "pooling.trip.completed", by, f"completed-{self.pool_id}"


class State:
    """All rides and pools of this backend."""

    def __init__(self) -> None:
        # A backend that was restarted begins with other numbers: an event that has an id of before would not happen.
        self.ids = itertools.count(int(time.time()) % 9_000 + 1_000)
        self.asked: dict[int, Ride] = {}
        self.pools: dict[int, Pool] = {}

    def ask(self, rider_id: int, pickup: str, dropoff: str) -> Ride:
        ride = Ride(next(self.ids), rider_id, pickup, dropoff)
        self.asked[ride.request_id] = ride
        return ride

    def accept(self, request_id: int, driver_id: int) -> tuple[Ride, Pool] | None:
        """Returns the ride and its pool, unless the request is over. Accepted twice, it is the same."""
        for pool in self.pools.values():
            for ride in pool.rides:
                if ride.request_id == request_id:
                    return ride, pool
        pool = self.pool_of(driver_id)
        if request_id not in self.asked or (pool and len(pool.rides) >= SEATS):
            return None
        ride = self.asked.pop(request_id)
        if not pool:
            pool = Pool(next(self.ids), driver_id)
            self.pools[pool.pool_id] = pool
        pool.rides.append(ride)
        return ride, pool

    def refuse(self, request_id: int) -> Ride | None:
        return self.asked.pop(request_id, None)

    def wrote(self, pool_id: int, author: int, text: str) -> None:
        if pool := self.pools.get(pool_id):
            pool.chat.append({"from": author, "text": text})

    def end(self, pool: Pool) -> None:
        self.pools.pop(pool.pool_id, None)

    def pool_of(self, user: int) -> Pool | None:
        return next(
            (pool for pool in self.pools.values() if user == pool.driver_id or user in [ride.rider_id for ride in pool.rides]), None
        )

    def of(self, user: int) -> dict:
        """Returns all that this user's page shows."""
        pool = self.pool_of(user)
        ride = next((ride for ride in self.asked.values() if ride.rider_id == user), None)
        share = next((share for share in pool.shares() if share["rider_id"] == user), None) if pool else None
        rides = [ride.public() for ride in pool.rides if ride.rider_id == user] if pool else [ride.public()] if ride else []
        return {
            "ride": rides[0] if rides else None,
            "offers": [one.offer() for one in self.asked.values()] if user in DRIVERS else [],
            "pool": pool.public() if pool else None,
            "chat": pool.chat if pool else [],
            "fare": share,
        }
