"""Files that a command is to write, by the option that named them."""

from __future__ import annotations

from pathlib import Path

from job.errors import InputError


def require_folder(path: str, option: str) -> None:
    """Before anything is computed for it. Raises `InputError` where the file's folder is not there."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise InputError(
            "there is no such folder to write a file into",
            where=option,
            found=str(folder),
            expected="a folder that is there",
            hint="Make it, or name another file",
        )


def write_output(path: str, text: str, option: str) -> None:
    """Raises `InputError` where it cannot be written."""
    require_folder(path, option)
    try:
        Path(path).write_text(text, "utf-8", newline="")
    except OSError as error:
        words = f"the file cannot be written: {error.strerror}"
        raise InputError(words, where=option, found=path, hint="Name another file") from None
