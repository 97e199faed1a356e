"""PLACE/latest: of the runs below a place, the one that was published last.

No file says which it is, the manifests do: a run that is not whole, or that a gate has stopped, has none.
"""

from __future__ import annotations

from job.errors import InputError
from job.ledger.manifest import MANIFEST, Manifest, decode
from job.store import open_store

LATEST = "latest"


def run_at(output: str) -> str:
    """`output`; for PLACE/latest the run below PLACE that was published last. Raises `InputError` where none was."""
    place, _, name = output.rstrip("/").rpartition("/")
    if name != LATEST or place.endswith(":/") or output.rstrip("/") == f"/{LATEST}":  # a bucket; of the root
        return output
    place = place or "."
    if any(file.key == MANIFEST for file in open_store(output).list()):  # a run that is called so
        return output
    if (found := newest(place)) is None:
        raise InputError("no run has been published below this place", where=output, found="no manifest.json",
                         expected="runs in folders of their own", hint="Name the output of one run")  # fmt: skip
    return f"{place}/{found[0]}"


def newest(place: str, having: str = MANIFEST, but: str = "") -> tuple[str, Manifest] | None:
    """Folder and manifest of the run below `place` that was published last, of those that have the key `having`; not of
    the folder `but`.
    """
    store = open_store(place)
    keys = {file.key for file in store.list()}
    folders = [key.removesuffix(f"/{MANIFEST}") for key in keys if key.endswith(f"/{MANIFEST}") and key.count("/") == 1]
    wanted = [folder for folder in folders if folder != but and f"{folder}/{having}" in keys]
    runs = [(folder, decode(store.read(f"{folder}/{MANIFEST}"))) for folder in wanted]
    return max(runs, key=lambda run: (run[1].created, run[0]), default=None)
