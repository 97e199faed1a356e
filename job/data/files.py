"""One data file: opened plain or unzipped, decoded strictly, and named in every complaint."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from job.data.worker.json_text import LaxError, once
from job.errors import InputError

MAX_ROW_BYTES = 4 << 20
SAME = {"ndjson": "jsonl", "tsv": "csv"}  # other names of a kind of file
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SENTENCE_WORDS = 4  # names of columns have fewer
SAVE = "Save it as UTF-8; spreadsheets call that CSV UTF-8"
BEGINNINGS = {  # of what often has the name of a text file, and what to do
    b"\x1f\x8b": "It is gzip: let its name end in .gz",
    b"PK\x03\x04": "It is a zip archive or an Excel file: unpack it, or export its rows as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "It is a file of an older Excel or Word: export its rows as CSV in UTF-8",
    b"PAR1": "It is Parquet: let its name end in .parquet",
    b"\xff\xfe": f"It is UTF-16. {SAVE}",
    b"\xfe\xff": f"It is UTF-16. {SAVE}",
}


def is_sentence(name: str) -> bool:
    """Whether a text is where a column's name belongs."""
    return len(str(name).split()) >= SENTENCE_WORDS


class DataFile:
    """A file of rows; `pointer` is its source's place in the spec."""

    def __init__(self, path: Path, pointer: str) -> None:
        self.path = path
        self.name = path.name
        self._pointer = pointer
        self.zipped = self.name.lower().endswith(".gz")
        self.suffix = self.name.lower().removesuffix(".gz").rpartition(".")[2]
        self.kind = SAME.get(self.suffix, self.suffix)

    @contextmanager
    def unzipped(self) -> Iterator[IO[bytes]]:
        """The file's bytes for a reader that begins at their end: a gzipped one is unpacked to a temporary file."""
        if not self.zipped:
            with self.open_bytes() as opened:
                yield opened
            return
        with tempfile.TemporaryFile() as plain:
            with gzip.open(self.path) as packed:
                shutil.copyfileobj(packed, plain)
            plain.seek(0)
            yield plain

    def fault(
        self, message: str, line: int | None = None, found: str = "", expected: str = "", hint: str = ""
    ) -> InputError:
        where = f"{self.name} line {line}" if line else self.name
        return InputError(f"{where}: {message}", where=self._pointer, found=found, expected=expected, hint=hint)

    def _not_utf_8(self, byte: int, line: int | None = None) -> InputError:
        with self.open_bytes() as opened:
            begins = opened.read(4)
        hint = next((hint for beginning, hint in BEGINNINGS.items() if begins.startswith(beginning)), SAVE)
        return self.fault("not UTF-8", line, f"byte {byte:#04x}", hint=hint)

    @contextmanager
    def damage_named(self) -> Iterator[None]:
        """Turns what reading a broken file raises into an `InputError`."""
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise self.fault("the gzip file is damaged or cut short") from None
        except UnicodeDecodeError as error:
            raise self._not_utf_8(error.object[error.start]) from None

    def open_bytes(self) -> IO[bytes]:
        return cast(IO[bytes], gzip.open(self.path, "rb")) if self.zipped else self.path.open("rb")

    def open_text(self) -> IO[str]:
        """UTF-8 without a byte order mark, line ends as they are."""
        if self.zipped:
            return cast(IO[str], gzip.open(self.path, "rt", encoding="utf-8-sig", newline=""))
        return self.path.open(encoding="utf-8-sig", newline="")

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Line numbers and non-blank lines, without a byte order mark."""
        with self.damage_named(), self.open_bytes() as file:
            number = 0
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                if len(line) > MAX_ROW_BYTES:
                    raise self.fault("the row is too long", number, f"more than {MAX_ROW_BYTES} bytes")
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if line.strip():
                    yield number, line

    def decode(self, raw: bytes, line: int | None = None) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            number = line or raw.count(b"\n", 0, error.start) + 1
            raise self._not_utf_8(raw[error.start], number) from None

    def parse(self, text: str, line: int | None = None) -> Any:
        """`text` as JSON; `line` is its place in the file unless it is the whole file."""
        try:
            return json.loads(text, object_pairs_hook=once)
        except json.JSONDecodeError as error:
            hint = self._json_hint(text, line)
            raise self.fault(
                f"not JSON: {error.msg}", line or error.lineno, f"column {error.colno}", "", hint
            ) from None
        except LaxError as error:
            raise self.fault(str(error), line) from None
        except RecursionError:
            raise self.fault("nested too deeply", line) from None
        except ValueError:
            raise self.fault("a number with too many digits", line) from None

    def _json_hint(self, text: str, line: int | None) -> str:
        """What people often write in the place of JSON; `line` as in `parse`."""
        begins = text.strip()[:2]
        if begins in ("{'", "['"):
            return "JSON has double quotes around texts; Python writes them with json.dumps(row)"
        if line and begins in ("{", "[", "[{"):
            return "Each line is a row by itself; a list of rows over several lines, [{…}, {…}], is a .json file"
        return ""

    def row(self, value: Any, number: int, unit: str = "row") -> dict[str, Any]:
        """`value` if it is an object of columns; NaN, as Python writes a value that is missing, is null."""
        if not isinstance(value, dict):
            raise self.fault(
                f"{unit} {number} must be a JSON object", None, type(value).__name__, "an object of columns"
            )
        # NaN is not itself
        return {name: None if isinstance(item, float) and item != item else item for name, item in value.items()}
