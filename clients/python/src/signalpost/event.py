"""An event, as producers make it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

# The members of an event that have a field here.
MEMBERS = {"specversion", "id", "source", "type", "subject", "time", "data"}


@dataclass(frozen=True, slots=True)
class Event:
    """An event, as CloudEvents 1.0 defines it. Its id is chosen once, so that the server recognizes it when it is sent again."""

    type: str
    data: Any
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    source: str = "/"
    """Ids are unique within a source."""
    subject: str | None = None
    time: datetime | str | None = None
    extensions: Mapping[str, str | int | bool] = field(default_factory=dict)

    def members(self) -> dict[str, Any]:
        """Returns the members of its JSON form."""
        if taken := MEMBERS & self.extensions.keys():
            raise ValueError(f"{min(taken)!r} is no extension of an event: it is an attribute of every event")
        time = self.time
        if isinstance(time, datetime):
            if time.tzinfo is None:
                raise ValueError("the event's time has no time zone: use datetime.now(UTC)")
            time = time.isoformat()
        optional = {"subject": self.subject, "time": time}
        return {
            **self.extensions,
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.type,
            **{name: value for name, value in optional.items() if value is not None},
            "data": self.data,
        }
