"""Tells a customer that an order was shipped."""

import json

from componentize_py_types import Err
from kit import id_of, members, reporting, write
from wit_world import exports
from wit_world.exports.plugin import Description
from wit_world.imports.types import Body_Json, Decision, Delivery, Event, Priority, Recipients_User

settings = {"text": "Your order is on its way."}


@reporting
class Plugin(exports.Plugin):
    def describe(self) -> Description:
        return Description("template", "0.1.0", ["order.shipped"])

    def configure(self, settings_json: str) -> None:
        """An `Err` refuses the plugin when it is loaded."""
        for name, value in json.loads(settings_json).items():
            if name not in settings:
                raise Err(f"unknown setting `{name}`")
            if not isinstance(value, str):
                raise Err(f"`{name}` should be a string")
            settings[name] = value


@reporting
class Routing(exports.Routing):
    def route(self, event: Event) -> Decision:
        data = members(event.data)
        customer = Recipients_User(id_of(data, "user_id"))
        id_of(data, "order_id")
        message = {"type": "order_shipped", "order_id": data["order_id"], "text": settings["text"]}
        if data.get("total") is not None:
            message["total"] = data["total"]
        return Decision(joins=[], deliveries=[tell(customer, message)], leaves=[], ends=[])


def tell(to, message) -> Delivery:
    return Delivery(to, [], Body_Json(write(message)), None, None, None, Priority.NORMAL)
