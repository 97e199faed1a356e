"""Why a GPU cannot be used: one message per cause, from a driver library that answers as NVIDIA's would."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from job.errors import CapacityError, DeviceError, JobError
from job.host.device import DeviceProbe, Gpu, built_for, card_bytes, probe, unusable
from tests.drivers import libcuda

GOOD = DeviceProbe(True, True, 0, (13, 0), (Gpu("NVIDIA H200", (9, 0)),), "13.0")


@pytest.mark.parametrize(
    ("found", "kind", "says"),
    [
        (replace(GOOD, kernel_driver=False, library=False), DeviceError, "no NVIDIA driver on this machine"),
        (replace(GOOD, library=False), DeviceError, "this container was given no GPU"),
        (replace(GOOD, torch_cuda=None), CapacityError, "wrong image"),
        (replace(GOOD, driver_cuda=(12, 8)), DeviceError,
         "the NVIDIA driver does not fit this image (found it speaks CUDA 12.8)"),
        (replace(GOOD, status=803), DeviceError, "different versions"),
        (replace(GOOD, status=804), DeviceError, "forward compatibility"),
        (replace(GOOD, status=100, gpus=()), DeviceError, "the NVIDIA driver shows no GPU"),
        (replace(GOOD, gpus=()), DeviceError, "the NVIDIA driver shows no GPU"),
        (replace(GOOD, status=802), DeviceError, "cuInit answered 802"),
        (replace(GOOD, gpus=(Gpu("Tesla V100", (7, 0)),)), CapacityError, "Tesla V100, compute capability 7.0"),
    ],
)  # fmt: skip
def test_each_cause_has_its_message(found: DeviceProbe, kind: type[JobError], says: str) -> None:
    error = unusable(found)
    assert type(error) is kind
    assert says in str(error)


@pytest.mark.parametrize("found", [GOOD, replace(GOOD, kernel_driver=False), replace(GOOD, driver_cuda=(13, 2)),
                                   replace(GOOD, gpus=(Gpu("Tesla T4", (7, 5)), Gpu("old", (6, 1))))])  # fmt: skip
def test_what_serves_is_not_refused(found: DeviceProbe) -> None:
    """A newer driver, no /proc entry (as under WSL), the oldest generation torch is built for, an older second card."""
    assert unusable(found) is None


def test_the_masks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "void")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES=-1, NVIDIA_VISIBLE_DEVICES=void" in str(unusable(replace(GOOD, gpus=())))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"count": 2}, DeviceProbe(True, True, 0, (13, 0), (Gpu("first", (8, 6)), Gpu("second", (9, 6))))),
        ({"version": 12080, "count": 0}, DeviceProbe(True, True, 0, (12, 8))),
        ({"status": 100}, DeviceProbe(True, True, 100, (13, 0))),
        ({"status": 999, "version": 13010}, DeviceProbe(True, True, 999, (13, 1))),
    ],
)
def test_the_driver_is_asked(tmp_path: Path, answers: dict[str, int], expected: DeviceProbe) -> None:
    module = tmp_path / "version"
    module.touch()
    assert replace(probe(str(libcuda(tmp_path, **answers)), module), torch_cuda=None) == expected


def test_a_missing_driver_is_seen(tmp_path: Path) -> None:
    found = probe(str(tmp_path / "libcuda.so.1"), tmp_path / "version")
    assert (found.kernel_driver, found.library, found.gpus) == (False, False, ())


def test_torch_is_read_not_imported() -> None:
    import torch

    assert built_for() == torch.version.cuda
    program = "import sys; from job.host.device import probe; probe(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)


def test_the_memory_of_a_card_is_known_without_torch(tmp_path: Path) -> None:
    assert card_bytes(str(libcuda(tmp_path))) == 24 << 30
    (tmp_path / "none").mkdir()
    assert card_bytes(str(libcuda(tmp_path / "none", status=100, count=0))) is None
    assert card_bytes(str(tmp_path / "nothing.so")) is None


def test_variables_that_torch_cannot_be_imported_with_are_an_input_error() -> None:
    program = (
        "import job.host.device as device, job.errors as errors\n"
        "try: device.choose_device()\nexcept errors.InputError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TORCH_LOGS": "nonsense"}, capture_output=True, text=True
    )
    assert done.stdout.startswith("torch cannot be imported (found Invalid log settings: nonsense"), done.stderr
    assert "TORCH_LOGS" in done.stdout
