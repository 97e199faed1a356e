"""Several downloads at once, in threads that a stop signal need not wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Thread

from job.errors import JobError

DOWNLOADS = 8


def in_parallel(fetch: Callable[[str], object], names: Iterable[str]) -> None:
    """`fetch` each name, several at once; the first failure is raised and no new fetch begins after it.

    The threads are daemons: a stop signal must not wait until gigabytes have come.
    """
    waiting, done, failures = deque(names), deque[str](), deque[JobError]()
    expected = len(waiting)

    def work() -> None:
        while waiting and not failures:
            try:
                name = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                fetch(name)
            except JobError as error:
                failures.append(error)
            else:
                done.append(name)

    threads = [Thread(target=work, name=f"fetch-{i}", daemon=True) for i in range(min(DOWNLOADS, expected))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    if len(done) != expected:
        raise JobError("a download ended without an answer", found=f"{len(done)} files", expected=f"{expected} files")
