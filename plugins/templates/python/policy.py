# [routing]
# Tells a customer that an order was shipped.
# [formatting]
# Gives readers who ask for `format=text` the text of a message, without the JSON around it.
# [sessions]
# Greets clients, and answers a `ping` with a `pong`.
# [end]

import json

from componentize_py_types import Err
from kit import (
    id_of,  # [routing]
    is_text,  # [formatting]
    members,  # [routing]
    parse,  # [formatting, sessions]
    reporting,
    write,  # [routing, sessions]
)
from wit_world import exports
from wit_world.exports.formatting import Message  # [formatting]
from wit_world.exports.plugin import Description
from wit_world.exports.sessions import Response, Session  # [sessions]
from wit_world.imports.types import (
    Body,  # [formatting, sessions]
    Body_Json,  # [routing, sessions]
    Body_Text,  # [formatting]
    Decision,  # [routing, sessions]
    Delivery,  # [routing]
    Event,  # [routing]
    Priority,  # [routing]
    Recipients_User,  # [routing]
)

# Settings, which the server's configuration may change.
settings = {
    "text": "Your order is on its way.",  # [routing]
}


@reporting
class Plugin(exports.Plugin):
    def describe(self) -> Description:
        return Description("template", "0.1.0", ["order.shipped", "signalpost.direct"])

    def configure(self, settings_json: str) -> None:
        """An `Err` refuses the plugin when it is loaded."""
        for name, value in json.loads(settings_json).items():
            if name not in settings:
                raise Err(f"unknown setting `{name}`")
            if not isinstance(value, str):
                raise Err(f"`{name}` should be a string")
            settings[name] = value


# [routing]
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


# [formatting]
@reporting
class Formatting(exports.Formatting):
    def vary(self) -> list[str]:
        return ["format"]

    def format(self, message: Message, reader: list[tuple[str, str]]) -> Body | None:
        """`None` would drop the message for these readers."""
        shown = parse(message.body) if dict(reader).get("format") == "text" else None
        text = shown.get("text") if isinstance(shown, dict) else None
        return Body_Text(text) if is_text(text) else message.body


# [sessions]
@reporting
class Sessions(exports.Sessions):
    def opened(self, session: Session) -> Response:
        return reply({"type": "welcome", "user": session.user})

    def received(self, session: Session, message: Body) -> Response | None:
        """`None` leaves a message to other policies."""
        said = parse(message)
        is_ping = isinstance(said, dict) and said.get("type") == "ping"
        return reply({"type": "pong"}) if is_ping else None

    def closed(self, session: Session, code: int) -> Response:
        return reply()


def reply(*messages) -> Response:
    replies = [Body_Json(write(message)) for message in messages]
    return Response(replies, Decision([], [], [], []), [], None)
# [end]
