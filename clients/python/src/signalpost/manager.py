"""A `ConnectionManager` for FastAPI that takes the place of the usual one, which knows only the sockets of its own process.

Each socket that the application accepts gets a session at Signalpost, and what that session reads is passed on. So it doesn't matter which
worker sends a message. What clients send stays with the application, as before.
"""

import asyncio
import base64
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from .client import Signalpost, user_segment

log = logging.getLogger("signalpost")

# How long the handshake with Signalpost may take. Clients that wait for their own handshake give up after some ten seconds.
OPEN_DEADLINE_S = 5.0
# How long Signalpost's half of the closing handshake may take.
CLOSE_DEADLINE_S = 1.0
# "Back off, then reconnect" (docs/protocol.md): there is no connection to Signalpost, or it was lost without a close frame.
LOST = (1013, "no connection to the message server, back off")
UNAUTHORIZED = (4205, "no valid token")
# Codes that stand for the lack of a close frame or of its code (RFC 6455, section 7.4.1).
NOT_SENT = {1005, 1006, 1015}
# The envelope of a message, up to its value. What follows the value is one brace.
ENVELOPE = re.compile(r'\{"seq":(\d+),"type":"message","(data|data_base64)":')


@dataclass(eq=False)
class Bridge:
    """An accepted socket, and the task that passes messages on to it."""

    user_id: Any
    websocket: Any
    endpoint: asyncio.Task[Any] | None
    relay: asyncio.Task[None]


class ConnectionManager:
    """The sockets of a FastAPI application, with Signalpost behind them."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self.signalpost = Signalpost(url, key)
        # This worker's sockets only, of each user the newest.
        self.active_connections: dict[Any, Any] = {}
        self._bridges: list[Bridge] = []

    async def connect(self, websocket: Any, user_id: Any) -> None:
        """Accepts a socket, and passes on what Signalpost has for the user. Either order of the arguments will do."""
        if not hasattr(websocket, "accept"):
            websocket, user_id = user_id, websocket
        session = await self._open(websocket, user_id)
        try:
            # Also if it is closed at once: a browser can't read why a handshake was refused.
            await websocket.accept()
        except BaseException:
            if isinstance(session, ClientConnection):
                await session.close()
            raise
        relay = asyncio.create_task(self._relay(session, websocket))
        bridge = Bridge(user_id, websocket, asyncio.current_task(), relay)
        self._bridges.append(bridge)
        self.active_connections[user_id] = websocket
        relay.add_done_callback(lambda _: self._forget(bridge))

    def disconnect(self, user_id: Any) -> None:
        """Ends the session of a socket that is gone, which is the one whose endpoint calls this: a user's other sockets stay."""
        try:
            endpoint = asyncio.current_task()
        except RuntimeError:  # An endpoint without `async` runs in a thread.
            endpoint = None
        of_user = [bridge for bridge in self._bridges if bridge.user_id == user_id]
        gone = [bridge for bridge in of_user if bridge.endpoint is endpoint or bridge.websocket.client_state.name == "DISCONNECTED"]
        for bridge in gone or of_user:
            bridge.relay.get_loop().call_soon_threadsafe(bridge.relay.cancel)

    async def send_personal_message(self, message: Any, user_id: Any) -> None:
        """Sends a message to all of a user's devices, at whichever worker they are; for a user who is away it is kept for a while."""
        receipt = await self.signalpost.tell(user_id, message)
        for dropped in receipt.dropped:
            log.warning("a message to user %r was dropped: %s", user_id, dropped.reason)

    async def _open(self, websocket: Any, user_id: Any) -> ClientConnection | tuple[int, str]:
        """Opens a session, or returns the code and the reason with which to close the client's socket."""
        query = websocket.url.query and f"?{websocket.url.query}"
        address = f"{self.signalpost.url}/ws/{user_segment(user_id)}{query}".replace("http", "ws", 1)
        headers = {name: value for name, value in websocket.headers.items() if name == "authorization"}
        # The server bounds its messages, and they are so small that compression costs more than it saves.
        options: Any = {"max_size": None, "compression": None, "open_timeout": OPEN_DEADLINE_S, "close_timeout": CLOSE_DEADLINE_S}
        try:
            session = await connect(address, subprotocols=[Subprotocol("signalpost.v1")], additional_headers=headers, **options)
        except (OSError, TimeoutError, WebSocketException) as error:
            log.error("user %r gets no session at %s: %s", user_id, self.signalpost.url, error)
            return UNAUTHORIZED if isinstance(error, InvalidStatus) and error.response.status_code in (401, 403) else LOST
        # The hello says that messages reach the session. One that a policy refuses ends instead, which the relay passes on.
        with suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(OPEN_DEADLINE_S):
                # From the first message on, only acks count.
                await session.send('{"type":"ack","seq":0}')
                await session.send('{"type":"resume"}')
                await session.recv()
        return session

    async def _relay(self, session: ClientConnection | tuple[int, str], websocket: Any) -> None:
        """Passes messages on until one side ends, and tells the client with which code Signalpost has ended."""
        try:
            end = session if isinstance(session, tuple) else await self._pass_on(session, websocket)
            # After this the endpoint's next receive reports the disconnection, as it expects, and not that the socket was closed meanwhile.
            state = websocket.application_state
            await websocket.close(*end)
            websocket.application_state = state
        except Exception as error:  # Frameworks and servers have several for a client that is gone.
            log.debug("messages can't be passed on: %r", error)
            with suppress(Exception):
                await websocket.close(*LOST)
        finally:
            if isinstance(session, ClientConnection):
                await session.close()

    async def _pass_on(self, session: ClientConnection, websocket: Any) -> tuple[int, str]:
        """Passes messages on until Signalpost ends the session, and returns its code and reason."""
        with suppress(ConnectionClosed):
            while True:
                seq, message = unwrap(await session.recv(decode=True))
                if seq is not None:
                    await (websocket.send_bytes if isinstance(message, bytes) else websocket.send_text)(message)
                    # What is not acked is kept: if the client is gone, its next socket gets it.
                    await session.send(f'{{"type":"ack","seq":{seq}}}')
        code = session.close_code or 1006
        return LOST if code in NOT_SENT else (code, session.close_reason or "")

    def _forget(self, bridge: Bridge) -> None:
        self._bridges.remove(bridge)
        if self.active_connections.get(bridge.user_id) is bridge.websocket:
            del self.active_connections[bridge.user_id]


def unwrap(frame: str) -> tuple[int | None, str | bytes]:
    """Returns a message's seq and the message, digit by digit as it was published; the seq of a control frame is `None`."""
    if (head := ENVELOPE.match(frame)) is None:
        return None, ""
    value = frame[head.end() : -1]
    return int(head[1]), value if head[2] == "data" else base64.b64decode(value[1:-1])
