"""Large files in parts: llama.cpp reads them as one, no byte differs, and the disk never holds the model twice."""

from __future__ import annotations

import os
import shutil
import struct
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from job.errors import GateError
from job.gguf.convert import convert
from job.gguf.header import read_header, read_model_header
from job.gguf.native import opened
from job.gguf.split import Parts, split
from tests.tiny import narrow_dir

LIMIT = 300_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "bf16.gguf"
    convert(narrow_dir(), path, "bf16", "tuned", 1)
    return path


def content(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name → type, shape and bytes of every tensor of one file."""
    raw = path.read_bytes()
    return {
        t.name: (t.type, t.shape, raw[t.offset : t.offset + t.bytes]) for t in read_header(path, "k").tensors.values()
    }


def test_parts_hold_every_byte_and_open_as_one(whole: Path, tmp_path: Path) -> None:
    file = Path(shutil.copyfile(whole, tmp_path / "tuned-BF16.gguf"))
    report = split(file, LIMIT)
    count = len(report.files)
    assert count == 3
    assert report.files[0] == f"tuned-BF16-00001-of-0000{count}.gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) == report.files
    assert report.bytes == [(tmp_path / name).stat().st_size for name in report.files]
    parts = {name: found for path in tmp_path.iterdir() for name, found in content(path).items()}
    assert parts == content(whole)
    header = read_model_header(tmp_path / report.files[0], "k")
    assert header.metadata["tokenizer.chat_template"] == read_header(whole, "k").metadata["tokenizer.chat_template"]
    with opened(whole, "k") as model, model.context(64, 1) as context:
        expected = context.evaluate([1, 2, 3], 0)
    with opened(tmp_path / report.files[0], "k") as model, model.context(64, 1) as context:
        assert (context.evaluate([1, 2, 3], 0) == expected).all()


def test_a_small_file_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    file = Path(shutil.copyfile(whole, tmp_path / "tuned-BF16.gguf"))
    assert split(file, whole.stat().st_size) == Parts(["tuned-BF16.gguf"], [whole.stat().st_size])
    assert file.read_bytes() == whole.read_bytes()


def test_the_disk_holds_one_part_more_than_the_model(whole: Path, tmp_path: Path) -> None:
    file = Path(shutil.copyfile(whole, tmp_path / "tuned-BF16.gguf"))
    size, peaks, done = file.stat().st_size, [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            with suppress(FileNotFoundError):  # one that was removed between the two looks
                peaks.append(sum(entry.stat().st_size for entry in os.scandir(tmp_path) if entry.is_file()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    largest = max(split(file, LIMIT).bytes)
    done.set()
    watcher.join()
    assert max(peaks) <= size + largest + 4096


def test_headers_of_other_lengths_and_numbers_are_refused(whole: Path, tmp_path: Path) -> None:
    raw = whole.read_bytes()
    header = read_header(whole, "k")
    start, end = header.metadata_span
    broken = {
        "version": raw[:4] + struct.pack("<I", 2) + raw[8:],
        "more pairs": raw[:16] + struct.pack("<Q", header.pairs + 1) + raw[24:],
        "more tensors": raw[:8] + struct.pack("<Q", len(header.tensors) + 1) + raw[16:],
        "endless text": raw[:24] + struct.pack("<Q", 1 << 60) + raw[32:],
        "no text": raw[:24] + struct.pack("<Q", 1 << 20) + b"\\xff" * (1 << 20),
        "cut in the metadata": raw[: (start + end) // 2],
        "empty": b"",
        "other magic": b"GGML" + raw[4:],
    }
    for name, bytes_ in broken.items():
        path = tmp_path / name
        path.write_bytes(bytes_)
        with pytest.raises(GateError, match=r"gguf/tuned.gguf: ") as failure:
            read_header(path, "gguf/tuned.gguf")
        assert failure.value.faults[0].found, name
