"""What is made of bytes as they pass by: the ETag that S3 would give them, which over plain HTTP is the proof that they
came as they are stored, and their SHA-256.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol


class Taker(Protocol):
    """Takes bytes in order."""

    def write(self, data: bytes, /) -> Any: ...


class Each:
    """Gives the same bytes to several. It cannot seek, so s3transfer writes in order."""

    def __init__(self, *takers: Taker) -> None:
        self._takers = takers

    def write(self, data: bytes) -> int:
        for taker in self._takers:
            taker.write(data)
        return len(data)


class Sha256:
    """The SHA-256 of what came so far."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._sha256.update(data)

    @property
    def value(self) -> str:
        return self._sha256.hexdigest()


class Etag:
    """The ETag of what came so far, as if uploaded in parts of `part_bytes`; 0 for a single part."""

    def __init__(self, part_bytes: int = 0) -> None:
        self._part_bytes, self._part_left = part_bytes, part_bytes
        self._part = hashlib.md5(usedforsecurity=False)
        self._parts = b""

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while self._part_bytes and len(left) >= self._part_left:
            self._part.update(left[: self._part_left])
            left = left[self._part_left :]
            self._end_part()
        self._part.update(left)
        self._part_left -= len(left)

    def _end_part(self) -> None:
        self._parts += self._part.digest()
        self._part, self._part_left = hashlib.md5(usedforsecurity=False), self._part_bytes

    @property
    def value(self) -> str:
        """MD5 of the whole, or of the MD5s of its parts if stored so. Some stores have ETags of other kinds."""
        if not self._part_bytes:
            return self._part.hexdigest()
        parts = self._parts + (self._part.digest() if self._part_left < self._part_bytes else b"")
        return f"{hashlib.md5(parts, usedforsecurity=False).hexdigest()}-{len(parts) // 16}"
