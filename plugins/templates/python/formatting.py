"""Gives readers who ask for `format=text` the text of a message, without the JSON around it."""

import json
from typing import List, Optional, Tuple

from componentize_py_types import Err
from kit import is_text, parse, reporting
from wit_world import exports
from wit_world.exports.formatting import Message
from wit_world.exports.plugin import Description
from wit_world.imports.types import Body, Body_Text


@reporting
class Plugin(exports.Plugin):
    def describe(self) -> Description:
        return Description("template", "0.1.0", ["*"])

    def configure(self, settings: str) -> None:
        """An `Err` refuses the plugin when it is loaded."""
        for name in json.loads(settings):
            raise Err(f"unknown setting `{name}`")


@reporting
class Formatting(exports.Formatting):
    def vary(self) -> List[str]:
        return ["format"]

    def format(self, message: Message, reader: List[Tuple[str, str]]) -> Optional[Body]:
        """`None` would drop the message for these readers."""
        shown = parse(message.body) if dict(reader).get("format") == "text" else None
        text = shown.get("text") if isinstance(shown, dict) else None
        return Body_Text(text) if is_text(text) else message.body
