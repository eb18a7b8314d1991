"""What a server and a stream to it have in common: both take events, and messages to single users."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .errors import EventRefused
from .event import Event
from .receipts import Receipt


class Producer(ABC):
    async def publish(
        self,
        type: str,
        data: Any,
        *,
        id: str | None = None,
        source: str = "/",
        subject: str | None = None,
        time: datetime | str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> Receipt:
        """Publishes an event. Give an `id` of your own if you may publish the same event again, for example after a crash.

        Raises `EventRefused` if policies wanted the event and none of them routed it, `Problem` if the server refused the request, and
        `Unreachable` if there was no answer.
        """
        named = {} if id is None else {"id": id}
        return await self._routed(Event(type, data, source=source, subject=subject, time=time, extensions=extensions or {}, **named))

    async def tell(
        self,
        user_id: int | str,
        message: Any,
        *,
        ttl_ms: int | None = None,
        keep_ms: int | None = None,
        collapse_key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Sends a message, which is any JSON value, to one user's devices, without a routing policy.

        Give an `idempotency_key` of your own if you may send the same message again, for example after a crash.
        """
        terms = {"ttl_ms": ttl_ms, "keep_ms": keep_ms, "collapse_key": collapse_key}
        given = {name: value for name, value in terms.items() if value is not None}
        return await self._tell(user_id, message, given, idempotency_key or str(uuid.uuid4()))

    async def _routed(self, event: Event) -> Receipt:
        """Publishes an event. Raises `EventRefused` if policies wanted it and none of them routed it."""
        receipt = await self._publish(event)
        if receipt.refused_by_all:
            raise EventRefused(receipt)
        return receipt

    @abstractmethod
    async def _publish(self, event: Event) -> Receipt: ...

    @abstractmethod
    async def _tell(self, user_id: int | str, message: Any, terms: Mapping[str, int | str], once: str) -> Receipt: ...
