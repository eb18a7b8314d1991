"""What can go wrong, each with a sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .receipts import Receipt

# Statuses that say "not now". 502 and 504 are those of a proxy whose server restarts.
PASSING_STATUSES = frozenset({408, 429, 502, 503, 504})
# Another request with the same id is being answered; the next try gets its outcome.
UNDER_WAY = "under_way"

# Characters of an answer that are shown if it is not a problem document.
EXCERPT_CHARS_MAX = 200
# Refused events that a sentence about a batch names. All of them are in `results`.
NAMED_MAX = 3

ADVICE = {
    401: "give a key with the scope `publish`, as in Signalpost(url, key) or the variable SIGNALPOST_KEY; "
    "`signalpost token --api-key NAME` makes one",
    403: "ask whoever runs the server or the proxy before it to let this client in",
    404: "the address should end with the server's base path, as in http://127.0.0.1:8080/api/pool",
    413: "send less at once, or raise the limit that is named",
}


class SignalpostError(Exception):
    """The base of all errors that the server's answer, or its lack, causes."""


class Unreachable(SignalpostError):
    """There was no answer, also not to the further tries. The event may have arrived: publish it again with the same id."""


class Problem(SignalpostError):
    """The server has refused the request, and nothing has changed (RFC 9457)."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        self.status = status
        self.code = code
        """A stable name, for programs; docs/protocol.md lists them. It is empty if something before the server has answered."""
        self.detail = detail
        super().__init__(status, code, detail)

    def __str__(self) -> str:
        said = f"HTTP {self.status} {self.code}".rstrip() + f": {self.detail}"
        advice = ADVICE.get(self.status)
        return f"{said}. What to do: {advice}" if advice else said

    @property
    def may_pass(self) -> bool:
        """Returns whether the same request may be accepted later."""
        return self.status in PASSING_STATUSES or self.code == UNDER_WAY

    @classmethod
    def of(cls, status: int, text: str) -> Problem:
        """Reads an answer's body, which may be a proxy's."""
        try:
            return cls.read(json.loads(text))
        except ValueError:
            excerpt = " ".join(text.split())[:EXCERPT_CHARS_MAX]
            return cls(status, "", f"this is no answer of Signalpost's: {excerpt!r}" if excerpt else "there is no explanation")

    @classmethod
    def read(cls, value: Any) -> Problem:
        """Reads a problem document. Raises `ValueError` if it is something else."""
        if not isinstance(value, Mapping) or not isinstance(value.get("status"), int):
            raise ValueError("it is not a problem document")
        return cls(value["status"], str(value.get("code", "")), str(value.get("detail", "")))


class EventRefused(SignalpostError):
    """No policy routed the event: each that wanted it has refused it or has failed. `receipt` has the reasons.

    After a correction it may be published again with the same id.
    """

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        super().__init__(receipt)

    def __str__(self) -> str:
        return f"event {self.receipt.id} reached nobody: " + "; ".join(map(str, self.receipt.policies))


class BatchRefused(SignalpostError):
    """A part of a batch was refused, or all of it. What was accepted is published.

    `results` has a receipt or an error for each event, in the order of the events.
    """

    def __init__(self, results: Sequence[Receipt | Problem | EventRefused]) -> None:
        self.results = tuple(results)
        super().__init__(self.results)

    def __str__(self) -> str:
        refused = [(index, result) for index, result in enumerate(self.results) if isinstance(result, SignalpostError)]
        named = "; ".join(f"[{index}] {result}" for index, result in refused[:NAMED_MAX])
        more = f"; and {len(refused) - NAMED_MAX} more in `results`" if len(refused) > NAMED_MAX else ""
        return f"{len(refused)} of {len(self.results)} events were refused, the others are published: {named}{more}"
