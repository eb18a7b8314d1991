"""Tells a customer that an order was shipped."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.plugin import Description
from wit_world.imports.types import Body_Json, Decision, Delivery, Event, Priority, Recipients_User, Refusal

settings = {"text": "Your order is on its way."}


class Plugin(exports.Plugin):
    def describe(self) -> Description:
        return Description("template", "0.1.0", ["order.shipped"])

    def configure(self, settings_json: str) -> None:
        """An `Err` refuses the plugin when it is loaded."""
        for name, value in json.loads(settings_json).items():
            if name not in settings:
                raise Err(f"unknown setting `{name}`")
            settings[name] = value


class Routing(exports.Routing):
    def route(self, event: Event) -> Decision:
        data = json.loads(event.data.value) if isinstance(event.data, Body_Json) else {}
        message = {"type": "order_shipped", "order_id": required(data, "order_id"), "text": settings["text"]}
        customer = Recipients_User(str(required(data, "user_id")))
        return Decision(joins=[], deliveries=[tell(customer, message)], leaves=[], ends=[])


def required(data: dict, name: str):
    """An `Err` refuses the event: its producer finds it in the receipt."""
    if name not in data:
        raise Err(Refusal("missing_field", f"`{name}` is missing"))
    return data[name]


def tell(to, message) -> Delivery:
    return Delivery(to, [], Body_Json(json.dumps(message)), None, None, None, Priority.NORMAL)
