"""Verifies what a sink sends (Standard Webhooks 1.0). It needs the standard library only, so the file can be copied by itself."""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# How far the sender's clock and the way may put a webhook from now, in either direction, as the specification recommends. What is older may be
# a repetition by somebody who has recorded it.
TOLERANCE_S = 300

# Enough for thirty thousand years, and few enough for any number type.
TIMESTAMP_DIGITS_MAX = 12

# The signature scheme with a shared secret. `v1a` has public keys, and is not Signalpost's.
VERSION = "v1"
SECRET_PREFIX = "whsec_"


class InvalidWebhook(Exception):
    """The request is not one that the sink has signed, or it is too old. Answer it with 401."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A request that a sink has signed."""

    id: str
    """It is the same when the sink sends this webhook again: do nothing for an id that was handled."""
    timestamp: int
    """When it was sent, in seconds since 1970."""
    body: bytes

    def json(self) -> Any:
        """Returns the body's value."""
        return json.loads(self.body)


def verify(
    headers: Mapping[str, str],
    body: bytes | str,
    secrets: str | Iterable[str],
    *,
    tolerance_s: float = TOLERANCE_S,
    now: float | None = None,
) -> Webhook:
    """Returns the webhook of a request, if one of the secrets has signed it.

    `headers` may be any mapping, in upper or lower case. `body` is the request's body as it was received: JSON that was read and written again
    has another signature. `secrets` are one or several, as in `whsec_…`: while a secret is being replaced, the old and the new one.

    Raises `InvalidWebhook` with the reason, and `ValueError` or `TypeError` if the arguments can't be right.
    """
    keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise ValueError("there is no secret to verify with: give the sink's secret, as in whsec_…")
    if isinstance(body, str):
        body = body.encode()
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise TypeError(f"the body is {type(body).__name__}: give its bytes as they were received (`await request.body()`)")
    body = bytes(body)
    lowered = {name.lower(): value for name, value in headers.items()}
    id, timestamp, signatures = (_header(lowered, name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature"))
    # Python reads more as a number than the specification means, such as "1_0" and digits of other scripts.
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= TIMESTAMP_DIGITS_MAX):
        raise InvalidWebhook("webhook-timestamp is not a number of seconds since 1970")
    sent = int(timestamp)
    age = (time.time() if now is None else now) - sent
    if abs(age) > tolerance_s:
        side = "old" if age > 0 else "in the future"
        raise InvalidWebhook(f"webhook-timestamp is {abs(age):.0f} s {side}, over the tolerance of {tolerance_s:.0f} s: compare the two clocks")
    content = f"{id}.{timestamp}.".encode() + body
    expected = [hmac.new(key, content, hashlib.sha256).digest() for key in keys]
    # Every signature is compared with every digest, so the time doesn't tell which secret is the right one.
    matches = [hmac.compare_digest(digest, signature) for signature in _signatures(signatures) for digest in expected]
    if not any(matches):
        raise InvalidWebhook("no signature in webhook-signature is by one of the secrets: compare them with the sink's, and pass the raw body")
    return Webhook(id, sent, body)


def _key(secret: str) -> bytes:
    """Returns a secret's bytes. Its text is not repeated in the error."""
    if not isinstance(secret, str):
        raise TypeError(f"a secret is {type(secret).__name__}: give it as text, as in whsec_…")
    try:
        key = base64.b64decode(secret.strip().removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a secret is not whsec_ and base64: give it as the sink's configuration has it") from None
    if not key:
        raise ValueError("a secret is empty: give it as the sink's configuration has it")
    return key


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "").strip()
    if not value:
        raise InvalidWebhook(f"there is no header {name}: this is not a webhook, or something in between has removed it")
    return value


def _signatures(header: str) -> Iterable[bytes]:
    """Returns the signatures of our version: a list has those of others too."""
    for word in header.split():
        version, _, signature = word.partition(",")
        if version != VERSION:
            continue
        try:
            yield base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            continue
