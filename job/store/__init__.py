"""Where a run reads from and writes to: one small protocol, two places (a directory, S3)."""

from job.store.base import Store, Stored, safe_key, split_s3
from job.store.directory import DirectoryStore
from job.store.s3 import S3Store

__all__ = ["DirectoryStore", "S3Store", "Store", "Stored", "open_store", "safe_key", "split_s3"]


def open_store(uri: str) -> Store:
    """The store at `s3://bucket/prefix` or at a directory path. Nothing is read or written yet."""
    return S3Store(uri) if uri.startswith("s3://") else DirectoryStore(uri)
