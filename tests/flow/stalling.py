"""A wire that can be held: bytes pass between a client and a server until some are seen that must wait."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from urllib.parse import urlsplit


class Wire:
    """Forwards connections to `target`; requests in which `marker` occurs are held until `released`."""

    def __init__(self, target: str, marker: bytes) -> None:
        self._target = (urlsplit(target).hostname, urlsplit(target).port)
        self._marker = marker
        self.held, self.released = Event(), Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(self._target)
            Thread(target=self._pass, args=(client, server, self._marker), daemon=True).start()
            Thread(target=self._pass, args=(server, client, None), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, marker: bytes | None) -> None:
        try:
            while data := source.recv(1 << 16):
                if marker and marker in data:
                    self.held.set()
                    self.released.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # either end has gone
            source.close()
            sink.close()


@contextmanager
def wire(target: str, marker: bytes) -> Iterator[Wire]:
    made = Wire(target, marker)
    try:
        yield made
    finally:
        made.close()
