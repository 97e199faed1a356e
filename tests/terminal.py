"""The command at a terminal: a pseudo-terminal is its standard input, output and error, and is read as it comes."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path

from tests.forking import ROOT, environment, fork

LINES, COLUMNS = 50, 160
OBEYED = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """One command. `shown` is everything that it wrote so far."""

    def __init__(self, arguments: Sequence[str], scratch: Path, cwd: Path = ROOT) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        variables = environment(scratch, {"TERM": "xterm"})
        self._process = fork("job.__main__:main", [list(arguments)], (slave, slave), cwd, variables, given=slave)
        os.close(slave)
        self.shown = ""
        self._seen = 0

    def wait_for_new(self, text: str, seconds: float = 120) -> None:
        """Until `text` comes after what was waited for before."""
        deadline = time.monotonic() + seconds
        while (at := self.shown.find(text, self._seen)) < 0:
            assert self._read(), self.shown
            assert time.monotonic() < deadline, self.shown
        self._seen = at + len(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def finish(self, seconds: float = 120) -> int:
        """Its exit code, once it has ended."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, self.shown
        os.close(self._master)
        return self._process.wait(10)

    def lines(self) -> list[str]:
        """Lines that stay, without what moves a cursor."""
        return [
            line.rpartition("\r")[2].rstrip() for line in OBEYED.sub("", self.shown).replace("\r\n", "\n").split("\n")
        ]

    def _read(self) -> bool:
        """What has come within a moment; False at the end."""
        if select.select([self._master], [], [], 0.2)[0]:
            try:
                part = os.read(self._master, 1 << 16)
            except OSError:  # nobody has the other end open any more
                return False
            self.shown += part.decode("utf-8", "replace")
            return bool(part)
        return True
