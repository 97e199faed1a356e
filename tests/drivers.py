"""A driver library that answers as NVIDIA's libcuda would, for machines without a GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = r"""
#include <string.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return 0; }
int cuDeviceGetName(char *name, int length, int device)
{ strncpy(name, device ? "second" : "first", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{ *value = attribute == 75 ? MAJOR + device : 6; return 0; }
"""


def libcuda(folder: Path, status: int = 0, version: int = 13000, count: int = 1, major: int = 8) -> Path:
    """libcuda.so.1 in `folder`: what cuInit returns, its CUDA, its GPUs, the first one's compute capability MAJOR.6."""
    target = folder / "libcuda.so.1"
    definitions = [f"-DSTATUS={status}", f"-DVERSION={version}", f"-DCOUNT={count}", f"-DMAJOR={major}"]
    subprocess.run(
        ["cc", "-shared", "-fPIC", *definitions, "-x", "c", "-", "-o", target], input=SOURCE.encode(), check=True
    )
    return target
