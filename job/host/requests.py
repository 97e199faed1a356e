"""One HTTP request to a server that the environment names: a push gateway, a receiver of the message at the end."""

from __future__ import annotations

import base64
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

# Requests of one address that nobody waits for any more: a server may send a byte now and then for ever.
MOST_HANGING = 4
_hanging: dict[str, list[threading.Thread]] = {}


class _Stays(urllib.request.HTTPRedirectHandler):
    """What is sent goes to the server that was named and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def request(address: str, method: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> int:
    """The status of the answer; a user and password in the address are sent as basic authentication. Raises `OSError`
    where there is no answer within that time, from the look for the host's address to the last byte, and `ValueError`
    for an address that is none of HTTP.
    """
    hanging = [thread for thread in _hanging.get(address, ()) if thread.is_alive()]
    if len(hanging) >= MOST_HANGING:
        raise TimeoutError("earlier requests have no answer yet")
    found: list[int | Exception] = []

    def ask() -> None:
        try:
            found.append(_request(address, method, body, headers, timeout_seconds))
        except (OSError, ValueError, HTTPException) as error:
            found.append(error)

    thread = threading.Thread(target=ask, name="request", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if not found:
        _hanging[address] = [*hanging, thread]
        raise TimeoutError(f"no answer within {timeout_seconds:g} seconds")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _request(address: str, method: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> int:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the address must begin with http:// or https://")
    sent = dict(headers)
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        sent["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    asked = urllib.request.Request(plain, body, sent, method=method)  # noqa: S310 - the scheme was looked at
    try:
        with urllib.request.build_opener(_Stays).open(asked, timeout=timeout_seconds) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
