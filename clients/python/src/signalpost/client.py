"""Publishes events and sends messages over HTTP, with receipts, and tries again what may pass."""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import httpx2

from .errors import BatchRefused, EventRefused, Problem, SignalpostError, Unreachable
from .event import Event
from .producer import Producer
from .receipts import Receipt
from .stream import Stream

# Where `signalpost serve` is without configuration.
URL = "http://127.0.0.1:8080/api/pool"

# Tries of one call, and how long all of them may take: a server that restarts is back within seconds, and whoever waits for this call has a
# deadline of its own.
ATTEMPTS_MAX = 8
DEADLINE_S = 15.0
# How long one try may take. A server that is well answers within milliseconds, and a batch of a thousand events within seconds.
ATTEMPT_S = 10.0
# The pause after the first try, which doubles with each further one. A random half of it keeps clients apart.
PAUSE_S = 0.1
PAUSE_S_MAX = 2.0


class Signalpost(Producer):
    """A server, as producers see it. One object serves all tasks of an event loop and keeps its connections; close it with `aclose`, or use it
    with `async with`.

    `url` ends with the server's base path; without one it is the variable `SIGNALPOST_URL`, or a server on this machine. `key` is an API key with
    the scope `publish`; without one it is the variable `SIGNALPOST_KEY`, or none is sent.

    A call that gets no answer, or one that says "not now", is tried again, at most `attempts_max` times and for `deadline_s`. That is safe: an
    event keeps its id and a message its Idempotency-Key, so the server does each once.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, attempts_max: int = ATTEMPTS_MAX, deadline_s: float = DEADLINE_S
    ) -> None:
        self.url = _checked_url(url or os.environ.get("SIGNALPOST_URL") or URL)
        if attempts_max < 1 or not deadline_s > 0:
            raise ValueError("a call needs at least one attempt, and a deadline over 0 s")
        self._headers = _authorization(key or os.environ.get("SIGNALPOST_KEY") or "")
        self._attempts_max = attempts_max
        self._deadline_s = deadline_s
        self._http: tuple[asyncio.AbstractEventLoop, httpx2.AsyncClient] | None = None

    async def publish_batch(self, events: Iterable[Event]) -> list[Receipt]:
        """Publishes events one after the other, each as a whole, and returns their receipts in the same order.

        Raises `BatchRefused` if any event was refused. The others are published.
        """
        events = list(events)
        members = [event.members() for event in events]
        results: dict[int, Receipt | Problem | EventRefused] = {}
        budget = _Budget(self._attempts_max, self._deadline_s)
        left = list(range(len(events)))
        while left:
            body = _json([members[index] for index in left])
            answer = await self._post("/events", body, {"Content-Type": "application/cloudevents-batch+json"}, budget)
            results |= zip(left, self._results(answer, len(left)), strict=True)
            passing = {index: result for index in left if isinstance(result := results[index], Problem) and result.may_pass}
            left = list(passing)
            if left and not await budget.pause(_retry_after(answer)):
                break
        ordered = [results[index] for index in range(len(events))]
        receipts = [result for result in ordered if isinstance(result, Receipt)]
        if len(receipts) < len(ordered):
            raise BatchRefused(ordered)
        return receipts

    def stream(self) -> Stream:
        """Returns a stream, over which any number of events may be under way: use it with `async with`."""
        return Stream(self.url, self._headers, self._deadline_s)

    async def aclose(self) -> None:
        """Closes the connections. A later call opens new ones."""
        if self._http is not None:
            (loop, client), self._http = self._http, None
            if loop is asyncio.get_running_loop():
                await client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def _publish(self, event: Event) -> Receipt:
        budget = _Budget(self._attempts_max, self._deadline_s)
        return self._receipt(await self._post("/events", _json(event.members()), {"Content-Type": "application/cloudevents+json"}, budget))

    async def _tell(self, user_id: int | str, message: Any, terms: Mapping[str, int | str], once: str) -> Receipt:
        path = f"/users/{user_segment(user_id)}/messages" + (f"?{urlencode(terms)}" if terms else "")
        headers = {"Content-Type": "application/json", "Idempotency-Key": once}
        return self._receipt(await self._post(path, _json(message), headers, _Budget(self._attempts_max, self._deadline_s)))

    async def _post(self, path: str, body: bytes, headers: Mapping[str, str], budget: _Budget) -> httpx2.Response:
        """Returns the answer, which is a success or a batch's, within the budget.

        Raises `Problem` or `Unreachable`.
        """
        while True:
            pause_s: float | None = None
            try:
                async with asyncio.timeout(min(ATTEMPT_S, budget.left_s())):
                    answer = await self._client().post(self.url + path, content=body, headers={**self._headers, **headers})
            except (httpx2.TransportError, TimeoutError) as error:
                failure: SignalpostError = Unreachable(f"no answer from {self.url}: {_why(error)}")
                failure.__cause__ = error
                if _is_of_certificate(error):
                    raise failure
            else:
                if answer.is_success or _is_of_batch(answer):
                    return answer
                failure = problem = self._problem(answer)
                if not problem.may_pass:
                    raise failure
                pause_s = _retry_after(answer)
            if not await budget.pause(pause_s):
                failure.add_note(f"It was tried {budget.attempts} times in {budget.spent_s():.1f} s.")
                raise failure

    def _client(self) -> httpx2.AsyncClient:
        """Returns the client of the running event loop. Connections of an earlier loop, as tests have several, are of no use."""
        loop = asyncio.get_running_loop()
        if self._http is None or self._http[0] is not loop:
            # Each try has its own deadline.
            self._http = (loop, httpx2.AsyncClient(timeout=None))
        return self._http[1]

    def _receipt(self, answer: httpx2.Response) -> Receipt:
        try:
            return Receipt.read(answer.json())
        except ValueError as error:
            raise self._not_understood(answer) from error

    def _results(self, answer: httpx2.Response, count: int) -> list[Receipt | Problem | EventRefused]:
        try:
            results = [_result(item) for item in answer.json()]
            if len(results) != count:
                raise ValueError(f"{len(results)} results of {count} events")
            return results
        except (TypeError, ValueError) as error:
            raise self._not_understood(answer) from error

    def _not_understood(self, answer: httpx2.Response) -> SignalpostError:
        return SignalpostError(f"{self.url} has answered HTTP {answer.status_code} without a receipt: is this the address of a Signalpost?")

    def _problem(self, answer: httpx2.Response) -> Problem:
        if answer.is_redirect:
            where = answer.headers.get("location", "")
            return Problem(answer.status_code, "", f"the server is elsewhere: use the address {where!r}, without the part after the base path")
        return Problem.of(answer.status_code, answer.text)


class _Budget:
    """The tries and the time that one call has."""

    def __init__(self, attempts_max: int, deadline_s: float) -> None:
        self.attempts = 1
        self._attempts_max = attempts_max
        self._began = asyncio.get_running_loop().time()
        self._ends = self._began + deadline_s

    def left_s(self) -> float:
        return self._ends - asyncio.get_running_loop().time()

    def spent_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    async def pause(self, at_least_s: float | None) -> bool:
        """Waits until the next try, and returns whether there is one."""
        longest_s = min(PAUSE_S * 2 ** (self.attempts - 1), PAUSE_S_MAX)
        pause_s = longest_s * random.uniform(0.5, 1) + (at_least_s or 0)
        if self.attempts >= self._attempts_max or pause_s >= self.left_s():
            return False
        self.attempts += 1
        await asyncio.sleep(pause_s)
        return True


def user_segment(user_id: int | str) -> str:
    """Returns a user's id as a part of a path."""
    if isinstance(user_id, bool) or not isinstance(user_id, (int, str)):
        raise TypeError(f"a user's id is a number or a text, and this one is {type(user_id).__name__}")
    segment = quote(str(user_id), safe="")
    if segment in ("", ".", ".."):
        raise ValueError(f"{user_id!r} can't be a user's id: clients would read it as another path")
    return segment


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no address of a server: give one as in {URL}")
    return url.rstrip("/")


def _authorization(key: str) -> dict[str, str]:
    """Returns the header of a key. The key is not repeated in the error."""
    key = key.strip()
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key has characters that no key has: give it as `signalpost token --api-key NAME` has shown it")
    return {"Authorization": f"Bearer {key}"}


def _json(value: Any) -> bytes:
    """Returns JSON as Starlette's `send_json` writes it, so that clients read the same frames as before."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _result(item: Any) -> Receipt | Problem | EventRefused:
    """Reads one result of a batch."""
    if isinstance(item, Mapping) and "status" in item:
        return Problem.read(item)
    receipt = Receipt.read(item)
    return EventRefused(receipt) if receipt.refused_by_all else receipt


def _is_of_batch(answer: httpx2.Response) -> bool:
    """Returns whether an answer is a batch's of which nothing was accepted: then it is a list, and no problem document."""
    return answer.status_code == 400 and answer.headers.get("content-type", "").startswith("application/json") and answer.text.startswith("[")


def _retry_after(answer: httpx2.Response) -> float | None:
    """Returns the seconds that Retry-After asks for (RFC 9110, section 10.2.3)."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _why(error: Exception) -> str:
    if isinstance(error, (TimeoutError, httpx2.TimeoutException)):
        return "it took too long. Is the server overloaded, or the address another machine's?"
    if isinstance(error, httpx2.ConnectError) and not _is_of_certificate(error):
        return f"{error}. Does `signalpost serve` run there?"
    return str(error) or type(error).__name__


def _is_of_certificate(error: BaseException | None) -> bool:
    """Returns whether TLS is what failed, which no further try repairs."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None
