"""Digests of a stream, S3's ETag among them: with plain HTTP, the proof that it came as it is stored."""

from __future__ import annotations

import hashlib


class Digests:
    """Takes bytes in order. `sha256` and `md5_etag` are those of what came so far, as if uploaded in parts of
    `part_bytes`.

    It cannot seek, so s3transfer writes in order. 0 for a single part.
    """

    def __init__(self, part_bytes: int = 0) -> None:
        self.bytes = 0
        self._part_bytes, self._part_left = part_bytes, part_bytes
        self._sha256 = hashlib.sha256()
        self._part = hashlib.md5(usedforsecurity=False)
        self._parts = b""

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.bytes += len(data)
        left = memoryview(data)
        while self._part_bytes and len(left) >= self._part_left:
            self._part.update(left[: self._part_left])
            left = left[self._part_left :]
            self._end_part()
        self._part.update(left)
        self._part_left -= len(left)
        return len(data)

    def _end_part(self) -> None:
        self._parts += self._part.digest()
        self._part, self._part_left = hashlib.md5(usedforsecurity=False), self._part_bytes

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5_etag(self) -> str:
        """MD5 of the whole, or of the MD5s of its parts if stored so. Some stores have ETags of other kinds."""
        if not self._part_bytes:
            return self._part.hexdigest()
        parts = self._parts + (self._part.digest() if self._part_left < self._part_bytes else b"")
        return f"{hashlib.md5(parts, usedforsecurity=False).hexdigest()}-{len(parts) // 16}"
