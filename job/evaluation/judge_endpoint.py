"""An OpenAI-compatible endpoint: where it is, how often it is asked again, and how much of it may be used."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from job.errors import PASSING_STATUS, InputError, TransientError
from job.evaluation.judge_words import Messages
from job.host.credentials import MASK
from job.host.log import Secret
from job.host.proxies import require_address, require_proxies
from job.host.time_limits import limit

if TYPE_CHECKING:
    import httpx

URL, KEY = "TUNEJOB_JUDGE_URL", "TUNEJOB_JUDGE_KEY"
POINTER = "/evaluation/judge"
TRIES = 5
LONGEST_PAUSE_SECONDS = 60.0
MOST_BYTES = 4 << 20  # of an answer
CHARACTERS_A_TOKEN = 3  # fewer than there mostly are, where the endpoint does not count
SHOWN_CHARACTERS = 300
NO_KEY = (HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN)
# Newer models take the second form alone, most servers the first alone.
FORMS: tuple[Mapping[str, Any], ...] = ({"temperature": 0, "max_tokens": ...}, {"max_completion_tokens": ...})


class SpentError(Exception):
    """No more may be asked: a cap of the spec is reached. Its words, if any, say why the last try was for nothing."""


class DeclinedError(Exception):
    """The endpoint does not take this one request, as it is too long for the model, say."""


@dataclass
class Budget:
    """What may still be asked: every try counts, and tokens as the endpoint counts them, with a guess of open ones."""

    max_requests: int
    max_tokens: int
    requests: int = 0
    tokens: int = 0
    _guessed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, guess: int, failure: str = "") -> None:
        """Raises `SpentError` where one more request may be too much; `failure`: of the one before it."""
        with self._lock:
            if self.requests >= self.max_requests or self.tokens + self._guessed + guess > self.max_tokens:
                raise SpentError(*filter(None, [failure]))
            self.requests += 1
            self._guessed += guess

    def settle(self, guess: int, used: int) -> None:
        with self._lock:
            self._guessed -= guess
            self.tokens += used


@dataclass(frozen=True)
class Said:
    """An answer, the tokens of question and answer, and what the endpoint calls its model."""

    text: str
    tokens: int
    model: str


def address() -> str:
    """The endpoint's, as the environment has it. Raises `InputError` where it has none."""
    require_proxies("http", "https", "all", socks=True)
    found = require_address(URL)
    if found is None:
        hint = f"Set it to the address before /chat/completions, and {KEY} to its key if it wants one"
        raise InputError("no judge is named in the environment", where=URL, found="nothing", expected="https://host/v1",
                         hint=hint)  # fmt: skip
    if "?" in found or "#" in found:
        said = "the judge's address has more than a path"
        raise InputError(said, where=URL, found=f"{public(found)}, and more", expected="https://host/v1",
                         hint=f"A key goes into {KEY}")  # fmt: skip
    if "@" in found and os.environ.get(KEY):
        said = "the judge's address has a user, and a request says one of user and key"
        raise InputError(said, where=KEY, found=f"a key, and a user in {URL}", expected="one of them")
    return found


def silent(failure: str) -> TransientError:
    """Where it has failed too often."""
    hint = "Look at the endpoint, and run it again: what it has answered is kept"
    return TransientError("the judge does not answer", where=URL, found=failure, expected="an answer", hint=hint)


def public(url: str) -> str:
    """An address as it may be stored: without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Endpoint:
    """Asks one model, which is named at `pointer` of the spec; threads may share it. Close it when done."""

    def __init__(self, model: str, budget: Budget, pointer: str = POINTER) -> None:
        import httpx

        url = address()
        self.name, self._model, self._budget, self._form = public(url), model, budget, 0
        self._pointer = pointer
        self._url, self._key = f"{url}/chat/completions", Secret(os.environ.get(KEY, ""))
        self._client = httpx.Client(timeout=httpx.Timeout(limit("TUNEJOB_JUDGE_SECONDS")), follow_redirects=False)

    def close(self) -> None:
        self._client.close()

    def ask(self, messages: Messages, most_tokens: int) -> Said:
        """Raises `SpentError` and `DeclinedError`; `InputError` for what no try can mend, `TransientError` once it has
        failed too often.
        """
        try:
            return self._ask(messages, most_tokens, self._form)
        except DeclinedError:
            if self._form:
                raise
        said = self._ask(messages, most_tokens, 1)
        self._form = 1
        return said

    def _ask(self, messages: Messages, most_tokens: int, form: int) -> Said:
        settings = {name: most_tokens if value is ... else value for name, value in FORMS[form].items()}
        body = json.dumps({"model": self._model, "messages": messages, **settings}).encode()
        guess = len(body) // CHARACTERS_A_TOKEN + most_tokens
        pause = limit("TUNEJOB_JUDGE_PAUSE_SECONDS")
        failure = ""
        for number in range(TRIES):
            if number:
                time.sleep(pause)
            self._budget.take(guess, failure)
            used = 0
            try:
                said, failure, wanted = self._try(body)
                used = said.tokens if said and said.tokens else guess if said else 0
            finally:
                self._budget.settle(guess, used)
            if said:
                return said
            pause = min(LONGEST_PAUSE_SECONDS, wanted or limit("TUNEJOB_JUDGE_PAUSE_SECONDS") * 2**number)
        raise silent(f"{failure}, {TRIES} times")

    def _try(self, body: bytes) -> tuple[Said | None, str, float]:
        """An answer, or why there is none yet, and for how many seconds it wants to be left alone."""
        import httpx

        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key.reveal()}"
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                raw = _whole(response)
        except TimeoutError as error:
            return None, str(error), 0.0
        except (httpx.HTTPError, httpx.StreamError) as error:
            return None, type(error).__name__, 0.0
        status = response.status_code
        if status == HTTPStatus.OK:
            said = read(raw)
            return said, "" if said else "an answer of another form", 0.0
        if status in PASSING_STATUS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return None, f"status {status}", _seconds(response.headers.get("retry-after", ""))
        raise _refusal(status, raw, self._model, self._key, self._pointer)


def _whole(response: httpx.Response) -> bytes:
    """The body, within the time and the size of one answer. As it comes: what is packed may be of any size."""
    deadline = time.monotonic() + limit("TUNEJOB_JUDGE_SECONDS")
    found = bytearray()
    for part in response.iter_raw():
        found += part
        if time.monotonic() > deadline:
            raise TimeoutError("its answer took too long")
        if len(found) > MOST_BYTES:
            raise TimeoutError(f"its answer has more than {MOST_BYTES} bytes")
    return bytes(found)


def read(raw: bytes) -> Said | None:
    """What an endpoint has answered; None for another form."""
    try:
        document = json.loads(raw)
        text = document["choices"][0]["message"]["content"]
        used = (document.get("usage") or {}).get("total_tokens") or 0
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not (isinstance(text, str) or text is None) or type(used) is not int or used < 0:
        return None
    # Halves of a character, which JSON can hold and no file
    said, model = (str(one or "").encode("utf-8", "replace").decode() for one in (text, document.get("model")))
    return Said(said, used, model[:SHOWN_CHARACTERS])


def _seconds(text: str) -> float:
    with suppress(ValueError):
        return max(0.0, float(text))
    return 0.0


def _refusal(status: int, raw: bytes, model: str, key: Secret, pointer: str) -> Exception:
    """What a status means that no other try would change. Some say a wrong key: it goes before the text is cut."""
    text = raw.decode("utf-8", "replace").replace(key.reveal() or MASK, MASK)
    words = " ".join(text.split())[:SHOWN_CHARACTERS]
    found = f"status {status}: {words}" if words else f"status {status}"
    if status in NO_KEY:
        return InputError(
            "the judge does not let us in", where=KEY, found=found, expected="a key that is valid and paid for"
        )
    if status == HTTPStatus.NOT_FOUND:
        expected = f"{public(address())}/chat/completions with {model!a}"
        return InputError("the judge does not know this", where=f"{pointer}/model", found=found, expected=expected)
    if status < HTTPStatus.BAD_REQUEST:
        return InputError("the judge is somewhere else", where=URL, found=found, expected="its own address")
    return DeclinedError(found)
