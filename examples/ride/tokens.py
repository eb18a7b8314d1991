"""Makes the tokens that a page shows to Signalpost: JSON Web Tokens, signed with a secret that both servers have."""

import base64
import hashlib
import hmac
import json
import time

# The client fetches another one before the end, over the same socket.
TOKEN_S = 300


def make_token(secret: bytes, user: str) -> str:
    """Returns a token that says who the user is."""
    head, claims = {"alg": "HS256", "typ": "JWT"}, {"sub": user, "exp": int(time.time()) + TOKEN_S}
    text = b".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
    return b".".join([text, _base64(hmac.digest(secret, text, hashlib.sha256))]).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
