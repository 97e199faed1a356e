"""An OpenAI-compatible endpoint on loopback by script: a judge with taste, a favourite place, or faults."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-canary0007judge0007canary0007judge0007"
USER_INFO = "judge-user:canary0008password"
Fault = tuple[int, bytes] | str  # a status with its body, or "drop", "slow", "drip"
ANSWERS = re.compile(r"<<<ANSWER ([AB]) (\w+)>>>\n(.*?)\n<<<END OF ANSWER \1 \2>>>", re.DOTALL)
SLOW_SECONDS = 0.6


def answers_in(chat: list[dict[str, str]]) -> dict[str, str]:
    return {place: text for place, _, text in ANSWERS.findall(chat[-1]["content"])}


def by_taste(chat: list[dict[str, str]]) -> str:
    """The answer that comes later in the order of their characters is better, wherever it is."""
    given = answers_in(chat)
    if not given:
        return "OK"
    better = "A" if given["A"] > given["B"] else "B"
    return f"Answer A says one thing, answer B another.\nVERDICT: {better}"


def first_place(chat: list[dict[str, str]]) -> str:
    return "VERDICT: A"


@dataclass
class Judge:
    """`faults`: what goes wrong with the next requests, in their order. `asked`: each chat that came with its key."""

    url: str
    says: Callable[[list[dict[str, str]]], str]
    faults: list[Fault] = field(default_factory=list)
    fault: Fault | None = None  # with each request, from the one of this number on
    from_request: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def chats(self) -> list[str]:
        """What was asked about pairs."""
        return [json.dumps(body["messages"]) for body in self.bodies if answers_in(body["messages"])]

    def environment(self, user_info: str = "") -> dict[str, str]:
        url = self.url.replace("://", f"://{user_info}@") if user_info else self.url
        return {
            "TUNEJOB_JUDGE_URL": url,
            "TUNEJOB_JUDGE_KEY": "" if user_info else KEY,
            "TUNEJOB_JUDGE_PAUSE_SECONDS": "0.01",
        }

    def next_fault(self) -> Fault | None:
        with self.lock:
            if self.fault is not None and len(self.bodies) > self.from_request:
                return self.fault
            return self.faults.pop(0) if self.faults else None


@contextmanager
def judge_server(says: Callable[[list[dict[str, str]]], str] = by_taste) -> Iterator[Judge]:
    judge = Judge("", says)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with judge.lock:
                judge.bodies.append(body)
                judge.authorizations.append(self.headers.get("authorization", ""))
            fault = judge.next_fault()
            if self.path != "/v1/chat/completions":
                fault = (404, b"no such path")
            if fault == "drop":
                self.close_connection = True
                return
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            status, raw = fault if isinstance(fault, tuple) else (200, answer(judge.says(body["messages"])))
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            if status == 429:
                self.send_header("retry-after", "0.02")
            self.end_headers()
            for place in range(len(raw)) if fault == "drip" else ():
                self.wfile.write(raw[place : place + 1])
                self.wfile.flush()
                time.sleep(0.02)
            if fault != "drip":
                self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Whoever asked has gone away: that is what slow answers are for."""

    with Server(("127.0.0.1", 0), Handler) as server:
        judge.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield judge
        server.shutdown()


def answer(text: str, tokens: int | None = 50) -> bytes:
    document = {
        "model": "scripted-1",
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {"total_tokens": tokens},
    }
    return json.dumps(document).encode()
