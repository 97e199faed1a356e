"""How heavy libraries are imported: sooner, and without a look at the GPU."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

OLDEST_FOR_TRITON = (7, 0)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Within, nothing looks for garbage: imports make hardly any, and looking takes a seventh of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def gpu_left_alone(capability: str) -> Iterator[None]:
    """Within, two questions that libraries ask when they are imported are answered from `capability`, the GPU's;
    empty where there is none.

    torch would open the GPU to find out: bitsandbytes asks for the capability itself, torchao whether Triton runs on
    it.
    """
    if not capability:
        yield
        return
    import torch
    from torch.utils import _triton

    known = tuple(map(int, capability.split(".")))
    answers = [
        (torch.cuda, "get_device_capability", lambda *_: known),
        (_triton, "has_triton", lambda: _triton.has_triton_package() and known >= OLDEST_FOR_TRITON),
    ]
    asked = [getattr(module, name) for module, name, _ in answers]
    for module, name, answer in answers:
        setattr(module, name, answer)
    try:
        yield
    finally:
        for (module, name, _), function in zip(answers, asked, strict=True):
            setattr(module, name, function)
