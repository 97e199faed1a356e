"""Data sets of benchmarks: one subset with every split, brought here whole and fingerprinted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from job.errors import InputError
from job.source.data import check_kinds, fingerprint, nothing_there
from job.source.place import at_revision, origin_of, pointed
from job.source.splits import CARD, DISK_SPLITS, splits_of_subset, usable_files


@dataclass(frozen=True)
class FetchedSet:
    """A data set in `folder`, of which `subset` is all that is there; `file` where it is a file by itself. `revision`
    and `sha256` as of rows that are trained on.
    """

    source: str
    pointer: str
    folder: Path
    subset: str | None
    file: Path | None
    revision: str | None
    sha256: str

    @property
    def files(self) -> list[Path]:
        """Without the notes on downloads that the Hub's client leaves beside them."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return [path for path in found if path.relative_to(self.folder).parts[0] != ".cache"]


def fetch_set(source: str, subset: str | None, pointer: str, folder: Path, revisions: Mapping[str, str]) -> FetchedSet:
    """A data set without subsets is taken as it is. `pointer` is the benchmark's.

    Raises `InputError` for what is not there or not to be read, `PolicyError` for a data set that needs its own code
    or points out of itself, `TransientError` for the network.
    """
    with pointed(pointer):
        origin = origin_of(at_revision(source, revisions.get(pointer)), "dataset")
        names = [file.key for file in origin.files()]
        if not names:
            raise nothing_there(source)
        folder.mkdir(parents=True, exist_ok=True)
        if names == [PurePosixPath(source).name]:
            check_kinds(names)
            origin.stage(names, folder)
            return FetchedSet(
                source, pointer, folder, None, folder / names[0], origin.revision, fingerprint(folder, names)
            )
        if DISK_SPLITS in names:
            raise InputError("benchmarks are not read from what save_to_disk wrote", found=ascii(source))
        usable = usable_files(names)
        if CARD in usable:
            origin.stage([CARD], folder)
        chosen, splits = splits_of_subset(usable, folder, subset, pointer, or_only=True)
        files = sorted({name for files in splits.values() for name in files})
        origin.stage(files, folder)
        sha256 = fingerprint(folder, files)
        if CARD in usable:
            _of_one_subset(folder / CARD, chosen)
    return FetchedSet(source, pointer, folder, chosen, None, origin.revision, sha256)


def _of_one_subset(card: Path, subset: str) -> None:
    """The library looks for the files of other subsets, too, where a card names them."""
    from huggingface_hub import metadata_load
    from yaml import safe_dump

    head: dict[str, Any] = metadata_load(card) or {}
    kept: dict[str, Any] = {}
    if configs := [config for config in head.get("configs") or [] if config.get("config_name") == subset]:
        kept["configs"] = configs
    infos = head.get("dataset_info") or []
    about = [
        info for info in ([infos] if isinstance(infos, dict) else infos) if info.get("config_name", subset) == subset
    ]
    if about:
        kept["dataset_info"] = about[0] if len(about) == 1 else about
    card.unlink()  # it may be a link to the user's own
    card.write_text(f"---\n{safe_dump(kept)}---\n" if kept else "", "utf-8")
