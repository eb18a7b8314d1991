"""Publishes over one connection, with many events under way at a time: the producers' stream of docs/protocol.md."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from .errors import Problem, SignalpostError, Unreachable
from .event import Event
from .producer import Producer
from .receipts import Receipt

SUBPROTOCOL = Subprotocol("signalpost.publish.v1")

# How long a handshake may take, and the closing one. A server that is well takes milliseconds.
OPEN_DEADLINE_S = 5.0
CLOSE_DEADLINE_S = 1.0
# The pause before another connection, or before a frame that may be taken later is sent again. It doubles, and half of it is random.
PAUSE_S = 0.1
PAUSE_S_MAX = 2.0


class Stream(Producer):
    """A producers' stream. `async with signalpost.stream() as stream` opens and closes it; any number of tasks may publish over it at a time.

    A connection that is lost is opened again, and what has no answer is sent again. That is safe: each event keeps its id, and the server does
    it once.
    """

    def __init__(self, url: str, headers: Mapping[str, str], deadline_s: float) -> None:
        self.url = url
        self._headers = headers
        self._deadline_s = deadline_s
        # Frames without an answer, in the order in which they are sent; the first of them are sent over this connection.
        self._waiting: deque[tuple[str, asyncio.Future[Any]]] = deque()
        self._sent = 0
        self._credit = 0
        self._socket: ClientConnection | None = None
        self._pumping = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._failure: SignalpostError | None = None

    async def send(self, event: Event) -> Receipt:
        """Publishes an event that is made already. Raises what `Signalpost.publish` does."""
        return await self._routed(event)

    async def __aenter__(self) -> Self:
        """Opens the stream. Raises `Problem` or `Unreachable`."""
        self._opened = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._deadline_s):
                await asyncio.shield(self._opened)
        except BaseException as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                raise self._unreachable() from error
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the stream. Whoever still waits for an answer gets `Unreachable`."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._opened is not None:
            # Nobody waits for it any more.
            self._opened.cancel()
        self._fail(Unreachable("the stream is closed"))

    async def _publish(self, event: Event) -> Receipt:
        return await self._exchange(event.members())

    async def _tell(self, user_id: int | str, message: Any, terms: Mapping[str, int | str], once: str) -> Receipt:
        return await self._exchange({"user": str(user_id), "message": message, "id": once, **terms})

    async def _exchange(self, frame: Mapping[str, Any]) -> Receipt:
        """Sends a frame and returns its receipt. Sends it again if the server says that it may be taken later."""
        text = json.dumps(frame, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        pause_s = PAUSE_S
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    answer = await self._answer(text)
                    if not (isinstance(answer, Mapping) and "status" in answer):
                        return Receipt.read(answer)
                    problem = Problem.read(answer)
                    if not problem.may_pass:
                        raise problem
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1))
                    pause_s = min(2 * pause_s, PAUSE_S_MAX)
        except TimeoutError as error:
            raise self._unreachable() from error
        except ValueError as error:
            raise SignalpostError(f"{self.url} has answered without a receipt") from error

    async def _answer(self, text: str) -> Any:
        if self._failure is not None:
            raise self._failure
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, answer))
        await self._pump()
        return await answer

    async def _pump(self) -> None:
        """Sends what waits, as far as the credit goes."""
        async with self._pumping:
            while (socket := self._socket) is not None and self._sent < min(len(self._waiting), self._credit):
                text, _ = self._waiting[self._sent]
                self._sent += 1
                try:
                    await socket.send(text)
                except ConnectionClosed:
                    # It is sent again over the next one.
                    return

    async def _run(self) -> None:
        """Keeps a connection open, and passes answers on to those who wait for them."""
        pause_s = PAUSE_S
        while self._failure is None:
            try:
                async with connect(
                    f"{self.url}/publish".replace("http", "ws", 1),
                    subprotocols=[SUBPROTOCOL],
                    additional_headers=self._headers,
                    max_size=None,
                    compression=None,
                    open_timeout=OPEN_DEADLINE_S,
                    close_timeout=CLOSE_DEADLINE_S,
                ) as socket:
                    self._credit = json.loads(await socket.recv())["credit"]
                    # Those who gave up meanwhile have nobody to answer to.
                    self._waiting = deque(entry for entry in self._waiting if not entry[1].done())
                    self._sent = 0
                    self._socket = socket
                    if self._opened is not None and not self._opened.done():
                        self._opened.set_result(None)
                    pause_s = PAUSE_S
                    await self._pump()
                    await self._read(socket)
            except InvalidStatus as error:
                problem = Problem.of(error.response.status_code, (error.response.body or b"").decode(errors="replace"))
                if not problem.may_pass:
                    self._fail(problem)
                    return
            except (OSError, TimeoutError, WebSocketException, ValueError, KeyError):
                pass
            finally:
                self._socket = None
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _read(self, socket: ClientConnection) -> None:
        async for text in socket:
            _, answer = self._waiting.popleft()
            self._sent -= 1
            if not answer.done():
                answer.set_result(json.loads(text))
            await self._pump()

    def _fail(self, failure: SignalpostError) -> None:
        """Ends the stream for all who wait."""
        self._failure = self._failure or failure
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(failure)
        for _, answer in self._waiting:
            if not answer.done():
                answer.set_exception(failure)
        self._waiting.clear()

    def _unreachable(self) -> Unreachable:
        return Unreachable(f"no answer from {self.url} within {self._deadline_s:g} s. Does `signalpost serve` run there?")
