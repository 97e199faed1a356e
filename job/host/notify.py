"""Tells somebody that a run has ended: a signed request to the address that the environment names.

It is tried a few times and never fails a run. A run that is stopped is not at its end, and no message is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from job.host.known_secrets import learn
from job.host.log import Log, Secret
from job.host.requests import request

URL, KEY = "TUNEJOB_NOTIFY_URL", "TUNEJOB_NOTIFY_KEY"
TIMES, FIRST_PAUSE_SECONDS, TIMEOUT_SECONDS = 4, 0.5, 10.0
BUSY = (408, 425, 429)  # of the answers below 500, those after which another try may succeed
VERSION = 1


class Notifier:
    """Takes address and key out of the environment, so that no child process has them."""

    def __init__(self) -> None:
        self._url, self._key = (Secret(os.environ.pop(name, "")) for name in (URL, KEY))
        learn(self._url.reveal(), self._key.reveal())

    def tell(self, facts: Mapping[str, Any], log: Log) -> None:
        """Sends `facts`, in the form of `schemas/notification.schema.json`."""
        if not self._url:
            return
        body = log.redact(json.dumps({"version": VERSION, **facts}, ensure_ascii=False)).encode()
        said, pause_seconds = "", FIRST_PAUSE_SECONDS
        for again in range(TIMES):
            if again:
                time.sleep(pause_seconds)
                pause_seconds *= 2
            try:
                status = request(self._url.reveal(), "POST", body, self._headers(body), TIMEOUT_SECONDS)
            except (OSError, ValueError, HTTPException) as error:
                said = str(error)
                if isinstance(error, ValueError):
                    break
                continue
            if status < 300:
                log("notified", status=status, tries=again + 1)
                return
            said = f"status {status}"
            if status < 500 and status not in BUSY:
                break
        log("notified", note="the message of the end could not be sent", reason=said)

    def _headers(self, body: bytes) -> dict[str, str]:
        """The signature is of the time, a dot and the body: an old request cannot be sent again later."""
        headers = {"Content-Type": "application/json", "User-Agent": "tunejob"}
        if self._key:
            sent = str(int(time.time()))
            signed = hmac.new(self._key.reveal().encode(), f"{sent}.".encode() + body, hashlib.sha256).hexdigest()
            headers |= {"X-Tunejob-Timestamp": sent, "X-Tunejob-Signature": f"sha256={signed}"}
        return headers
