"""Greets clients, and answers a `ping` with a `pong`."""

import json
from typing import Optional

from componentize_py_types import Err
from kit import parse, reporting, write
from wit_world import exports
from wit_world.exports.plugin import Description
from wit_world.exports.sessions import Response, Session
from wit_world.imports.types import Body, Body_Json, Decision


@reporting
class Plugin(exports.Plugin):
    def describe(self) -> Description:
        return Description("template", "0.1.0", [])

    def configure(self, settings: str) -> None:
        """An `Err` refuses the plugin when it is loaded."""
        for name in json.loads(settings):
            raise Err(f"unknown setting `{name}`")


@reporting
class Sessions(exports.Sessions):
    def opened(self, session: Session) -> Response:
        return reply({"type": "welcome", "user": session.user})

    def received(self, session: Session, message: Body) -> Optional[Response]:
        """`None` leaves a message to other policies."""
        said = parse(message)
        is_ping = isinstance(said, dict) and said.get("type") == "ping"
        return reply({"type": "pong"}) if is_ping else None

    def closed(self, session: Session, code: int) -> Response:
        return reply()


def reply(*messages) -> Response:
    replies = [Body_Json(write(message)) for message in messages]
    return Response(replies, Decision([], [], [], []), [], None)
