"""Tells a rider and a driver that they share a ride, and makes them a group."""

import json

from componentize_py_types import Err
from kit import id_of, members, prefixed, reporting, write
from wit_world import exports
from wit_world.exports.plugin import Description
from wit_world.imports.types import Body_Json, Decision, Delivery, Event, Membership, Priority, Recipients_Users


@reporting
class Plugin(exports.Plugin):
    def describe(self) -> Description:
        return Description("match", "0.1.0", ["pooling.match.found"])

    def configure(self, settings: str) -> None:
        for name in json.loads(settings):
            raise Err(f"unknown setting `{name}`")


@reporting
class Routing(exports.Routing):
    def route(self, event: Event) -> Decision:
        data = members(event.data)
        id_of(data, "request_id")
        both = [id_of(data, "rider_id"), id_of(data, "driver_id")]
        group = prefixed("pool:", id_of(data, "pool_id"), "pool_id")
        begin = {
            "type": "pooling_match",
            "request_id": data["request_id"],
            "status": "matched",
            "details": "You have been matched for a pooling request!",
        }
        # These members come first and win; the rest of the data follows them.
        message = Body_Json(write(begin | data | begin))
        delivery = Delivery(Recipients_Users(both), [], message, None, None, None, Priority.HIGH)
        return Decision([Membership(group, user) for user in both], [delivery], [], [])
