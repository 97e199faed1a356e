"""What can be seen of local models and rows where they are: names, and of a model its config."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from job.errors import InputError
from job.source.data import ACCEPTED, HUB, PLAIN, check_kinds, nothing_there, single
from job.source.model import open_local
from job.source.model_files import CONFIG, config_files, model_type, read_object, weight_files
from job.source.place import LocalOrigin, pointed
from job.source.splits import data_files
from job.spec import SourceSpec
from job.store.base import translating_errors
from job.weights.layout import read_tensors

HIDDEN = re.compile(r"(^|/)(\.|__)")  # what the `datasets` library does not look at
TEMPLATES = ("chat_template.jinja", "chat_template.json")
LFS_POINTER = b"version https://git-lfs"
TOKENIZER = "tokenizer_config.json"


def files_of_rows(spec: SourceSpec, pointer: str) -> list[Path]:
    """The files in which the rows of a local source may be: of a folder those of every split, for only the `datasets`
    library knows which are in which. Raises as `fetch_data` does for what names show; `pointer` is the source's.
    """
    with pointed(f"{pointer}/source"):
        paths = LocalOrigin(spec.source, HUB).glimpse()
        if not paths:
            raise nothing_there(spec.source)
        if list(paths) == [PurePosixPath(spec.source).name]:
            names = single(list(paths), spec, pointer)
            check_kinds(names)
        else:
            usable = data_files([name for name in paths if not HIDDEN.search(name)], spec, pointer)
            names = sorted(name for name in usable if name.lower().endswith(ACCEPTED))
            if not names:
                found = ", ".join(map(ascii, sorted(paths)[:3]))
                raise InputError("no data files are in this folder", found=found, expected=", ".join(PLAIN))
    return [paths[name] for name in names]


def has_chat_template(source: str, pointer: str) -> bool:
    """Of a local model. Raises as `fetch_model_config` does, for what is seen without transformers."""
    with pointed(pointer):
        paths = open_local(source).glimpse()
        names = [name for name in paths if "/" not in name]
        if CONFIG not in names and (below := sorted(name for name in paths if name.endswith(f"/{CONFIG}"))):
            nested = PurePosixPath(source, below[0]).parent
            message = f"there is no {CONFIG} in this folder"
            raise InputError(message, found=ascii(source), expected="a model", hint=f"Did you mean {nested}?")
        config_files(names)
        folder = paths[CONFIG].parent
        with translating_errors(str(folder), OSError):
            model_type(folder)
        for name in weight_files(folder, names):
            _check_weights(paths[name])
        return owns_template(folder)


def owns_template(folder: Path) -> bool:
    """Whether the model in `folder` comes with a chat template."""
    if any((folder / name).is_file() for name in TEMPLATES):
        return True
    return (folder / TOKENIZER).is_file() and bool(read_object(folder / TOKENIZER).get("chat_template"))


def _check_weights(path: Path) -> None:
    """Raises `InputError` for a file that is not whole, by its header, or is a pointer to one that was not fetched."""
    with translating_errors(str(path), OSError):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                hint = "Run: git lfs pull"
                raise InputError(f"{path.name} is a pointer of Git LFS, not the weights", hint=hint)
        read_tensors(path)
