"""Which files of a data set make up a split of a subset. The `datasets` library decides, by names and card alone."""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from job.data.worker.json_text import strings
from job.errors import InputError, PolicyError
from job.spec import SourceSpec

if TYPE_CHECKING:
    from datasets import DatasetBuilder

CARD = "README.md"
SCRIPT = ".py"
DISK_SPLITS = "dataset_dict.json"  # is above the splits of a `save_to_disk` folder
# What the `datasets` library and LLaMA-Factory write beside data, and what Spark leaves there.
ABOUT_DATA = ("dataset_infos.json", "dataset_info.json", DISK_SPLITS, "_SUCCESS", "_metadata", "_common_metadata")
DISK_STATE, DISK_ORDER = "state.json", "indices.arrow"  # of a folder with Arrow files
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")


def unknown(what: str, asked: str, known: Sequence[str], pointer: str) -> InputError:
    """A name that the data set does not have, with the nearest it has."""
    near = difflib.get_close_matches(asked, known, 1, 0.5)
    hint = f"Did you mean {near[0]}?" if near else ""
    return InputError(
        f"there is no such {what}", where=pointer, found=ascii(asked), expected=f"one of {', '.join(known)}", hint=hint
    )


def files_of_split(names: Sequence[str], folder: Path, spec: SourceSpec, pointer: str) -> list[str]:
    """Those of `names` that make up the spec's split, in the order the `datasets` library reads them.

    `folder` holds the card, if there is one. Raises `InputError` for an unknown subset or split (pointers
    `{pointer}/subset`, `{pointer}/split`), `PolicyError` for a card that points out of the data set or a data set that
    is a script.
    """
    usable = data_files(names, spec, pointer)
    if DISK_SPLITS in names:
        return usable
    _, splits = splits_of_subset(usable, folder, spec.subset, pointer)
    asked = spec.split.partition("[")[0]
    if asked not in splits:
        raise unknown("split", asked, list(splits), f"{pointer}/split")
    return splits[asked]


def splits_of_subset(
    usable: Sequence[str], folder: Path, subset: str | None, pointer: str, or_only: bool = False
) -> tuple[str, dict[str, list[str]]]:
    """What the `datasets` library calls the subset, and of its splits the files. `or_only`: where there is but one and
    nobody gave it a name, another name is as good. Raises as `files_of_split` does.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        skeleton = Path(scratch) / "files"
        _copy_names(usable, folder, skeleton)
        return _splits(skeleton, Path(scratch) / "cache", None if or_only and _nameless(skeleton) else subset, pointer)


def _nameless(skeleton: Path) -> bool:
    from datasets import get_dataset_config_names
    from datasets.exceptions import DatasetsError

    try:
        return list(get_dataset_config_names(str(skeleton))) == ["default"]
    except (DatasetsError, FileNotFoundError, ValueError):  # is said where the files are chosen
        return False


def data_files(names: Sequence[str], spec: SourceSpec, pointer: str) -> list[str]:
    """Those of `names` that are not code, archives or notes about the others; of a `DatasetDict` the split's alone.

    Raises as `files_of_split` does for what the names show.
    """
    usable = usable_files(names)
    return _saved_split(usable, spec, pointer) if DISK_SPLITS in names else usable


def usable_files(names: Sequence[str]) -> list[str]:
    """Those of `names` that are not code, archives or notes about the others. Raises `PolicyError` for a script."""
    usable = [name for name in names if not name.endswith((SCRIPT, *ARCHIVES)) and not _is_about_data(name, names)]
    if any(name.endswith(SCRIPT) and "/" not in name for name in names) and usable == [n for n in usable if n == CARD]:
        raise PolicyError("the data set is a script", expected="data files", hint="No code of a data set is run")
    return usable


def _is_about_data(name: str, names: Sequence[str]) -> bool:
    """Whether a file says something of the rows beside it and holds none."""
    folder, _, last = name.rpartition("/")
    saved = any(other.endswith(".arrow") and other.rpartition("/")[0] == folder for other in names)
    if saved and last == DISK_ORDER:
        hint = "Save it again with flatten_indices()"
        raise InputError("a saved data set whose rows are in another order", found=ascii(name), hint=hint)
    is_cache = last.startswith("cache-") and last.endswith(".arrow")  # of a map() over the saved rows
    return last in ABOUT_DATA or is_cache or (saved and last == DISK_STATE)


def _saved_split(names: Sequence[str], spec: SourceSpec, pointer: str) -> list[str]:
    """The Arrow files of a split in a folder that `DatasetDict.save_to_disk` wrote: a folder each."""
    asked = spec.split.partition("[")[0]
    splits = sorted({name.partition("/")[0] for name in names if name.endswith(".arrow") and "/" in name})
    if asked not in splits:
        raise unknown("split", asked, splits, f"{pointer}/split")
    return [name for name in names if name.startswith(f"{asked}/") and name.endswith(".arrow")]


def _copy_names(names: Sequence[str], folder: Path, skeleton: Path) -> None:
    """Empty files of the same names, and the real card: all that is needed to decide, and nothing to run."""
    for name in names:
        path = skeleton / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if CARD in names:
        _check_card(folder / CARD)
        shutil.copyfile(folder / CARD, skeleton / CARD)


def _check_card(card: Path) -> None:
    """Raises `PolicyError` if a configuration's files are outside the data set: no request is made for a card; and
    `InputError` for a head of another form.
    """
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        head = metadata_load(card) or {}
    except (YAMLError, ValueError) as error:
        raise InputError(f"{CARD} has no readable head: {error}") from error
    for key in ("configs", "dataset_info"):
        entries = head.get(key) or []
        if odd := [one for one in (entries if isinstance(entries, list) else [entries]) if not isinstance(one, dict)]:
            raise InputError(f"{CARD} has no readable head: {key}", found=ascii(odd[0]), expected="a mapping")
    for text in strings(head.get("configs")):
        if "://" in text or "::" in text or text.startswith(("/", "~")) or ".." in PurePosixPath(text).parts:
            raise PolicyError(f"{CARD} points out of the data set", found=ascii(text), expected="files of the data set")


def _splits(skeleton: Path, cache: Path, subset: str | None, pointer: str) -> tuple[str, dict[str, list[str]]]:
    """The subset's name, and split name → file names."""
    builder = _builder(skeleton, cache, subset, pointer)
    root = skeleton.resolve()
    files = builder.config.data_files or {}
    return str(builder.config.name), {
        str(split): [Path(path).resolve().relative_to(root).as_posix() for path in paths]
        for split, paths in files.items()
    }


def _builder(skeleton: Path, cache: Path, subset: str | None, pointer: str) -> DatasetBuilder:
    from datasets import get_dataset_config_names, get_dataset_default_config_name, load_dataset_builder
    from datasets.exceptions import DatasetsError

    try:
        subsets = get_dataset_config_names(str(skeleton))
        chosen = subset or get_dataset_default_config_name(str(skeleton))
        if chosen is None:
            raise InputError(
                "the data set has several subsets", where=f"{pointer}/subset", expected=f"one of {', '.join(subsets)}"
            )
        if chosen not in subsets:
            raise unknown("subset", chosen, subsets, f"{pointer}/subset")
        return load_dataset_builder(str(skeleton), name=chosen, cache_dir=str(cache))
    except (DatasetsError, FileNotFoundError, ValueError) as error:
        said = str(error).replace(str(skeleton), "the data set")
        raise InputError(f"no data files were recognised: {said}") from error
