"""Tells a rider and a driver that they share a ride, and makes them a group."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.plugin import Description
from wit_world.imports.types import Body_Json, Decision, Delivery, Event, Membership, Priority, Recipients_Users, Refusal

ID = "an id, which is a whole number or a string that is not empty"


class Plugin(exports.Plugin):
    def describe(self) -> Description:
        return Description("match", "0.1.0", ["pooling.match.found"])

    def configure(self, settings: str) -> None:
        for name in json.loads(settings):
            raise Err(f"unknown setting `{name}`")


class Routing(exports.Routing):
    def route(self, event: Event) -> Decision:
        data = json.loads(event.data.value) if isinstance(event.data, Body_Json) else {}
        id_of(data, "request_id")
        both = [id_of(data, "rider_id"), id_of(data, "driver_id")]
        group = f"pool:{id_of(data, 'pool_id')}"
        message = {
            "type": "pooling_match",
            "request_id": data["request_id"],
            "status": "matched",
            "details": "You have been matched for a pooling request!",
        }
        message = message | {name: value for name, value in data.items() if name not in message}
        delivery = Delivery(Recipients_Users(both), [], Body_Json(json.dumps(message)), None, None, None, Priority.HIGH)
        return Decision([Membership(group, user) for user in both], [delivery], [], [])


def id_of(data: dict, name: str) -> str:
    if name not in data:
        raise Err(Refusal("missing_field", f"`{name}` is missing: it should be {ID}"))
    value = data[name]
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value):
        return str(value)
    raise Err(Refusal("invalid_field", f"`{name}` should be {ID}"))
