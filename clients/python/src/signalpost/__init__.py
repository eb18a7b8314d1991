"""The Python client of Signalpost, a WebSocket message router.

`ConnectionManager` replaces the class of this name in a FastAPI application, `Signalpost` publishes events and sends messages, and `verify`
checks what Signalpost's sinks send.
"""

from .client import Signalpost
from .errors import BatchRefused, EventRefused, Problem, SignalpostError, Unreachable
from .event import Event
from .manager import ConnectionManager
from .receipts import Consulted, Dropped, Fault, Receipt, Refusal
from .stream import Stream
from .webhooks import InvalidWebhook, Webhook, verify

__all__ = [
    "BatchRefused",
    "ConnectionManager",
    "Consulted",
    "Dropped",
    "Event",
    "EventRefused",
    "Fault",
    "InvalidWebhook",
    "Problem",
    "Receipt",
    "Refusal",
    "Signalpost",
    "SignalpostError",
    "Stream",
    "Unreachable",
    "Webhook",
    "verify",
]
