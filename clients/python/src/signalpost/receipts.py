"""What the server answers to a producer. Members that a newer server adds are ignored, and words that it adds are kept as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The outcomes of a policy that did not route the event. Any other means that it did, also one that only a newer server knows.
FAILURES = frozenset({"refused", "faulted", "circuit_open"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a policy refused an event, in its own words."""

    code: str
    detail: str

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Refusal:
        return cls(value["code"], value["detail"])


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong inside a policy."""

    kind: str
    detail: str

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Fault:
        return cls(value["kind"], value["detail"])


@dataclass(frozen=True, slots=True)
class Consulted:
    """A policy that wanted the event, and what it answered."""

    name: str
    version: str
    outcome: str
    """`routed`, `refused`, `faulted` or `circuit_open`."""
    deliveries: int = 0
    refusal: Refusal | None = None
    fault: Fault | None = None
    dead_letter: int | None = None
    """The id under which the event is kept for this policy, until an operator retries or deletes it."""

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Consulted:
        refusal, fault = value.get("refusal"), value.get("fault")
        return cls(
            name=value["name"],
            version=value.get("version", ""),
            outcome=value["outcome"],
            deliveries=value.get("deliveries", 0),
            refusal=None if refusal is None else Refusal.read(refusal),
            fault=None if fault is None else Fault.read(fault),
            dead_letter=value.get("dead_letter"),
        )

    def __str__(self) -> str:
        match self.outcome:
            case "refused" if self.refusal:
                said = f"{self.name} {self.version} refused it: {self.refusal.detail} ({self.refusal.code})"
            case "faulted" if self.fault:
                said = f"{self.name} {self.version} failed on it: {self.fault.detail} ({self.fault.kind})"
            case "circuit_open":
                said = f"{self.name} {self.version} was not called, because it failed too often in a row"
            case outcome:
                said = f"{self.name} {self.version}: {outcome}"
        return said if self.dead_letter is None else f"{said}; kept as dead letter {self.dead_letter}"


@dataclass(frozen=True, slots=True)
class Dropped:
    """Messages that were not posted, and why."""

    reason: str
    count: int
    users: tuple[str, ...] = ()
    """The first of their readers."""

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Dropped:
        return cls(value["reason"], value.get("count", 0), tuple(value.get("users", ())))


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server's answer to an event or a message that it has accepted."""

    id: str
    source: str = ""
    duplicate: bool = False
    """The same id was accepted before, and nothing was done this time: after a lost answer this says that the first try arrived."""
    policies: tuple[Consulted, ...] = ()
    recipients: int = 0
    """Users that deliveries reach."""
    posted: int = 0
    """Messages appended to mailboxes."""
    dropped: tuple[Dropped, ...] = ()
    joins_refused: int = 0
    note: str | None = None
    """For example that no policy wanted this type of event."""

    @property
    def refused_by_all(self) -> bool:
        """Returns whether policies wanted the event, and none of them routed it."""
        return bool(self.policies) and all(policy.failed for policy in self.policies)

    @classmethod
    def read(cls, value: Any) -> Receipt:
        """Reads a receipt. Raises `ValueError` if it is something else."""
        try:
            return cls(
                id=value["id"],
                source=value.get("source", ""),
                duplicate=value["duplicate"],
                policies=tuple(Consulted.read(policy) for policy in value["policies"]),
                recipients=value["recipients"],
                posted=value["posted"],
                dropped=tuple(Dropped.read(dropped) for dropped in value.get("dropped", ())),
                joins_refused=value.get("joins_refused", 0),
                note=value.get("note"),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it is not a receipt: {error!r}") from error
