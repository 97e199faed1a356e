"""Fetching data: which files belong to a source's split, brought here and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from job.errors import InputError
from job.source.place import HUBS, Place, at_revision, origin_of, pointed
from job.source.splits import CARD, files_of_split, unknown
from job.spec import DataSpec, SourceSpec
from job.store.base import sha256_of

PLAIN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
ACCEPTED = PLAIN + tuple(f"{kind}.gz" for kind in PLAIN)
SINGLE_SPLIT = "train"
SHEET, PAGES = "Save the sheet as CSV UTF-8", "Save its text as .txt, where each line is a row, or make .jsonl of it"
OTHER_KINDS = {  # that people have rows in, and what to do
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), SHEET),
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".pdf", ".html", ".md"), PAGES),
    **dict.fromkeys(
        (".yaml", ".yml", ".xml", ".pkl", ".db", ".sqlite"), "Write its rows as .jsonl, a row in each line"
    ),
    ".zip": "Unpack it",
}
HUB = HUBS["dataset"]


@dataclass(frozen=True)
class FetchedSource:
    """One source's files of the named split, in the data set's order; the slice of the split is not applied yet.

    `pointer` is the source's place in the spec, such as `/data/train/0`. `sha256` covers the files' names and contents.
    """

    spec: SourceSpec
    pointer: str
    files: tuple[Path, ...]
    revision: str | None
    sha256: str


def fetch_data(
    spec: DataSpec, workdir: Path, revisions: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[FetchedSource], list[FetchedSource] | None]:
    """The training sources, and the held-out sources if the spec names some, below `workdir/data`.

    `revisions`: commits to take in place of what a branch is now, by the source's place in the spec.
    Raises `InputError` for what is not there, empty or not to be read, `PolicyError` for a data set that needs its own
    code or points out of itself, `TransientError` for the network.
    """
    folder = workdir.resolve() / "data"
    train = [fetch_source(s, f"/data/train/{i}", folder / f"train-{i}", revisions) for i, s in enumerate(spec.train)]
    asked = spec.held_out_sources
    if asked is None:
        return train, None
    return train, [
        fetch_source(s, f"/data/held_out/sources/{i}", folder / f"held-out-{i}", revisions) for i, s in enumerate(asked)
    ]


def fetch_glimpse(spec: SourceSpec, pointer: str, workdir: Path) -> tuple[FetchedSource, bool]:
    """Enough of a source to see what its rows are like, and whether that is all of it: every file of this machine's,
    else the first of the split. Nothing is hashed. Raises as `fetch_data` does.
    """
    folder = workdir.resolve() / "glimpse"
    with pointed(f"{pointer}/source"):
        origin, names = _chosen(spec, pointer, folder, spec.source)
        seen = names[:1] if "://" in spec.source else names
        origin.stage(seen, folder)
    return FetchedSource(spec, pointer, tuple(folder / name for name in seen), origin.revision, ""), seen == names


def fetch_source(spec: SourceSpec, pointer: str, folder: Path, revisions: Mapping[str, str]) -> FetchedSource:
    """The source at `pointer`, its files in `folder`. Raises as `fetch_data` does."""
    with pointed(f"{pointer}/source"):
        origin, chosen = _chosen(spec, pointer, folder, at_revision(spec.source, revisions.get(pointer)))
        origin.stage(chosen, folder)
    files = tuple(folder / name for name in chosen)
    return FetchedSource(spec, pointer, files, origin.revision, fingerprint(folder, chosen))


def nothing_there(source: str) -> InputError:
    return InputError("there is nothing there", found=ascii(source), expected=f"files of {', '.join(PLAIN)}")


def _chosen(spec: SourceSpec, pointer: str, folder: Path, address: str) -> tuple[Place, list[str]]:
    """Where the source is at `address`, and the names of the files there that make up its split."""
    origin = origin_of(address, "dataset")
    names = [file.key for file in origin.files()]
    if not names:
        raise nothing_there(spec.source)
    folder.mkdir(parents=True, exist_ok=True)
    if names == [PurePosixPath(spec.source).name]:
        chosen = single(names, spec, pointer)
    else:
        if CARD in names:
            origin.stage([CARD], folder)
        chosen = files_of_split(names, folder, spec, pointer)
    check_kinds(chosen)
    return origin, chosen


def single(names: list[str], spec: SourceSpec, pointer: str) -> list[str]:
    """A file by itself has one split."""
    asked = spec.split.partition("[")[0]
    if asked != SINGLE_SPLIT:
        raise unknown("split", asked, [SINGLE_SPLIT], f"{pointer}/split")
    return names


def check_kinds(names: Sequence[str]) -> None:
    odd = [name for name in names if not name.lower().endswith(ACCEPTED)]
    if odd:
        expected = f"{', '.join(PLAIN)}, each also .gz"
        hint = OTHER_KINDS.get(PurePosixPath(odd[0].lower()).suffix, "")
        raise InputError("not a kind of file the job reads", found=ascii(odd[0]), expected=expected, hint=hint)


def fingerprint(folder: Path, names: Sequence[str]) -> str:
    """SHA-256 over each name and the SHA-256 of its file, in the names' order."""
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name}\0{sha256_of(folder / name)}\n".encode())
    return total.hexdigest()
