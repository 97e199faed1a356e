"""Which device trains, and why a GPU that was asked for is not available: one message per cause.

The driver is asked through its own library (libcuda), as torch will ask it: without torch, in milliseconds, before
anything is fetched. What the node lacks is a `DeviceError` (another node may have it); what the request or the image
lacks is a `CapacityError` (another try gets the same).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import runpy
from dataclasses import dataclass
from pathlib import Path

from job.errors import CapacityError, DeviceError, InputError, JobError

DEVICE_VARIABLE = "TUNEJOB_DEVICE"  # auto, cpu or gpu; the image says gpu
KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
LIBRARY, MANAGEMENT_LIBRARY = "libcuda.so.1", "libnvidia-ml.so.1"
VISIBLE, CARDS = "CUDA_VISIBLE_DEVICES", "TUNEJOB_CARDS"  # of this process; of the run, whose processes see one each
OLDEST_CAPABILITY = (7, 5)  # Turing: CUDA 13 compiles for nothing older
NO_DEVICE = 100  # cuInit's answers, from cuda.h
HOW_TO_GIVE_A_GPU = "docker run --gpus all, podman run --device nvidia.com/gpu=all, in Kubernetes nvidia.com/gpu: 1"
TOO_OLD_OR_MIXED = {
    803: "its kernel module and its library are of different versions",
    804: "this GPU takes no forward compatibility",
}
MAJOR, MINOR = 75, 76  # attributes of a device: its compute capability


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class DeviceProbe:
    """What can be known of this machine's GPUs without torch."""

    kernel_driver: bool  # the node's NVIDIA kernel module is loaded
    library: bool  # libcuda is in this container
    status: int = 0  # cuInit's answer; 0 is success
    driver_cuda: tuple[int, int] = (0, 0)  # newest CUDA the driver speaks
    gpus: tuple[Gpu, ...] = ()
    torch_cuda: str | None = None  # CUDA that torch was built for; None is a CPU build


def wanted_device() -> str:
    """auto, cpu or gpu. Raises `CapacityError` for anything else."""
    wanted = os.environ.get(DEVICE_VARIABLE) or "auto"
    if wanted not in ("auto", "cpu", "gpu"):
        raise CapacityError("unknown device", where=DEVICE_VARIABLE, found=wanted, expected="auto, cpu or gpu")
    return wanted


def require_wanted_device() -> None:
    """Raises what `unusable` finds, if a GPU is demanded."""
    error = unusable(probe()) if wanted_device() == "gpu" else None
    if error:
        raise error


def choose_device() -> str:
    """ "cuda" if there is a usable NVIDIA GPU, else "cpu"; TUNEJOB_DEVICE=gpu refuses to fall back. Raises `InputError`
    for variables that torch cannot be imported with.
    """
    try:
        import torch
    except ValueError as error:
        said = " ".join(str(error).split())
        hint = "A variable of the environment is wrong, such as TORCH_LOGS"
        raise InputError("torch cannot be imported", found=said[:200], hint=hint) from error

    wanted = wanted_device()
    if wanted != "cpu" and torch.cuda.is_available():
        return "cuda"
    if wanted == "gpu":
        raise unusable(probe()) or DeviceError(
            "the driver shows a GPU, but torch cannot use it", hint="Try another node"
        )
    return "cpu"


def gpu_capability() -> str | None:
    """Compute capability of the GPU that will be used, such as "9.0"; None where the CPU will do."""
    found = probe().gpus if wanted_device() != "cpu" else ()
    return _dotted(found[0].capability) if found else None


def take_first_card() -> None:
    """Has this process see the first card alone, as engines spread a model over all that they see. To be called before
    anything asks the driver; `cards` knows all of them still.
    """
    found = cards()
    os.environ[CARDS] = ",".join(found)
    if len(found) > 1:
        os.environ[VISIBLE] = found[0]


def cards(library: str = MANAGEMENT_LIBRARY) -> list[str]:
    """The GPUs that a run may use, by the names that CUDA_VISIBLE_DEVICES has for them, without opening one."""
    named = os.environ.get(CARDS, os.environ.get(VISIBLE))
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        management = ctypes.CDLL(library)
    except OSError:
        return []
    count = ctypes.c_uint()
    known = management.nvmlInit_v2() == 0 and management.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    return [str(number) for number in range(count.value)] if known else []


def card_bytes(library: str = LIBRARY) -> int | None:
    """Memory of the first GPU, asked of the driver's library; None where there is none."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    device, memory_bytes = ctypes.c_int(), ctypes.c_size_t()
    known = cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
    return memory_bytes.value if known and cuda.cuDeviceTotalMem_v2(ctypes.byref(memory_bytes), device) == 0 else None


def probe(library: str = LIBRARY, kernel_driver: Path = KERNEL_DRIVER) -> DeviceProbe:
    """Asks the driver's library; loads no CUDA context."""
    loaded, torch_cuda = kernel_driver.exists(), built_for()
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return DeviceProbe(loaded, library=False, torch_cuda=torch_cuda)
    status = cuda.cuInit(0)
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    if status == 0:
        cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(cuda, number) for number in range(count.value))
    return DeviceProbe(loaded, True, status, (version.value // 1000, version.value % 1000 // 10), gpus, torch_cuda)


def _gpu(cuda: ctypes.CDLL, number: int) -> Gpu:
    device, name, figures = ctypes.c_int(), ctypes.create_string_buffer(256), (ctypes.c_int(), ctypes.c_int())
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    for figure, attribute in zip(figures, (MAJOR, MINOR), strict=True):
        cuda.cuDeviceGetAttribute(ctypes.byref(figure), attribute, device)
    return Gpu(name.value.decode("utf-8", "replace"), (figures[0].value, figures[1].value))


def built_for() -> str | None:
    """The CUDA version in torch's own version file; None for a CPU build. Torch itself stays unimported."""
    found = importlib.util.find_spec("torch")
    if not found or not found.origin:
        return None
    version: str | None = runpy.run_path(str(Path(found.origin).parent / "version.py"))["cuda"]
    return version


def unusable(found: DeviceProbe) -> JobError | None:
    """Why no GPU can be used, or None. The first cause that holds, from the node up to the image."""
    cpu = f"{DEVICE_VARIABLE}=cpu trains on the CPU"
    if not found.kernel_driver and not found.library:
        return DeviceError("no NVIDIA driver on this machine", hint=f"Run it on a GPU node; {cpu}")
    if not found.library:
        return DeviceError(
            "this machine has an NVIDIA driver, but this container was given no GPU",
            found=f"no {LIBRARY}",
            hint=f"{HOW_TO_GIVE_A_GPU}; {cpu}",
        )
    if found.torch_cuda is None:
        return CapacityError(
            "wrong image: there is a GPU, but torch here is a CPU build",
            hint=f"Use the image built from locks/cuda.txt; {cpu}",
        )
    needed, spoken = found.torch_cuda, ".".join(map(str, found.driver_cuda))
    if found.status in TOO_OLD_OR_MIXED or found.driver_cuda[0] < int(needed.split(".")[0]):
        why = TOO_OLD_OR_MIXED.get(found.status, f"it speaks CUDA {spoken}")
        return DeviceError(
            "the NVIDIA driver does not fit this image",
            found=why,
            expected=f"a driver for CUDA {needed} or newer",
            hint="Update the node's driver, or choose a node with a newer one",
        )
    if found.status == NO_DEVICE or (found.status == 0 and not found.gpus):
        masks = [
            f"{name}={os.environ[name]}"
            for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
            if name in os.environ
        ]
        return DeviceError(
            "the NVIDIA driver shows no GPU", found=", ".join(masks), hint=f"Ask for one GPU and unset masks; {cpu}"
        )
    if found.status:
        return DeviceError(
            "the NVIDIA driver does not start", found=f"cuInit answered {found.status}", hint="Try another node"
        )
    first = found.gpus[0]
    if first.capability < OLDEST_CAPABILITY:
        return CapacityError(
            "this GPU is too old",
            found=f"{first.name}, compute capability {_dotted(first.capability)}",
            expected=f"{_dotted(OLDEST_CAPABILITY)} (Turing) or newer",
        )
    return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
