"""The real command in a process that kills itself right before its N-th operation on files or on the store.

    python -m tests.chaos.driver N FOLDERS run SPEC [FLAG…]

FOLDERS, joined by `:`, are those whose operations count, the output's and the scratch directory's. Requests that change
something count wherever they go: once before anything of them is sent, once more before their body is. In place of a
number N may be a regular expression: the first operation whose description it is found in. With N = 0 nothing is
killed, and the last line of stderr is the JSON list of all operations in their order.

Nothing of the product knows of this: Python's audit events say what is about to happen. The command's child
processes are not counted; they are killed with it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from typing import Any

from job.__main__ import main
from job.store import s3
from tests.servers import SMALLEST_PART

KILLED = "killed before operation"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGING = (b"PUT ", b"POST ", b"DELETE ")
PATHS = {
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 2,
    "os.truncate": None,
    "shutil.rmtree": 1,
}  # event -> where its dir_fd is


class Operations:
    """Counts what the audit events announce, and ends the process before the one that it was asked for."""

    def __init__(self, point: str, folders: list[str]) -> None:
        self._number = int(point) if point.isdigit() else -1
        self._words = re.compile(point)
        self._folders = folders
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._body_is_next: dict[int, str] = {}  # request whose head was sent, by connection
        self.seen: list[str] = []

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook."""
        if os.getpid() != self._pid:  # a worker that was forked
            return
        if event == "http.client.send":
            self._request(arguments[0], arguments[1])
        elif event == "open":
            self._open(*arguments)
        elif event == "os.rename":
            self._file("rename", arguments[1], arguments[3])
        elif event in PATHS:
            at = PATHS[event]
            self._file(event.partition(".")[2], arguments[0], arguments[at] if at and len(arguments) > at else None)

    def _open(self, path: Any, mode: str | None, flags: int) -> None:
        if not isinstance(path, int) and flags & WRITING:
            self._file("open", path, None)

    def _file(self, what: str, path: Any, folder: int | None) -> None:
        within = os.readlink(f"/proc/self/fd/{folder}") if folder is not None and folder >= 0 else os.getcwd()
        whole = os.path.join(within, os.fsdecode(path))
        is_news = what != "mkdir" or not os.path.isdir(whole)
        if is_news and any(whole == known or whole.startswith(f"{known}/") for known in self._folders):
            self._count(f"{what} {whole}")

    def _request(self, connection: Any, data: Any) -> None:
        """A head is one message; the body follows in one or more of its own, of which the first counts."""
        head = bytes(data[:4096]) if isinstance(data, bytes | bytearray) else b""
        before = self._body_is_next.pop(id(connection), "")
        if b" HTTP/1." not in head:
            if before:
                self._count(f"{before} (body)")
        elif head.startswith(CHANGING):
            said = head.split(b" HTTP/1.")[0].decode()
            self._body_is_next[id(connection)] = said
            self._count(said)

    def _count(self, operation: str) -> None:
        with self._lock:
            self.seen.append(operation)
            if len(self.seen) == self._number or (self._number < 0 and self._words.search(operation)):
                os.write(2, f"\n{KILLED} {len(self.seen)} {operation}\n".encode())
                os.kill(self._pid, signal.SIGKILL)


def run(point: str, folders: list[str], arguments: list[str]) -> int:
    s3.PART_BYTES = SMALLEST_PART
    operations = Operations(point, folders)
    sys.addaudithook(operations.hear)
    code = main(arguments)
    if point == "0":
        os.write(2, f"\n{json.dumps(operations.seen)}\n".encode())
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2].split(":"), sys.argv[3:]))
