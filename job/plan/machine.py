"""What a job needs of a machine, worked out from its spec before anything is fetched.

Upper estimates, to rent or reserve by; the run itself checks the lower bounds (`job.plan.require`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from job.errors import CapacityError
from job.gguf.types import TYPES
from job.host.memory import GIB
from job.plan.cards import GB
from job.plan.gpu_memory import least_card_bytes, least_words, most_tokens, offloaded_bytes, packed_bytes, state_bytes
from job.plan.model_size import ModelSize, adapter_bytes
from job.plan.steps import Step, plan_memory, quantiser_bytes, steps
from job.spec import JobSpec

# Sizes of cards that are rented singly, from the smallest with bf16 that every cloud has to the largest.
GPU_CLASSES_GB = (24, 40, 48, 80, 141, 180)

PROCESS_BYTES = 8 * GIB  # Python with torch, CUDA's and the trainer's own, rows, pinned buffers
SHM_BYTES = 2 * GIB  # counts as memory
SHM_BYTES_A_GPU, CORES_A_GPU = GIB, 2  # of each further one
TMP_BYTES = 4 * GIB
LOG_BYTES = 4 * GIB  # a container's logs and layer count as ephemeral storage, too
OTHER_DISK_BYTES = 20 * GIB  # rows, caches of compilers
LOCAL_CHECKPOINTS = 2  # one that is being uploaded, one that is being written
DISK_MARGIN = 1.1
DISK_STEP_BYTES = 16 * GIB
MEMORY_STEP_BYTES = 4 * GIB
TOKENIZER_BYTES = 32 << 20


@dataclass(frozen=True)
class Resources:
    """`gpus` of `gpu_gb` each (10^9 bytes, as cards are named), which have the `gpu_least_bytes` that rows of
    `max_seq_length` need; `origin` says how the model's size is known.
    """

    gpu_gb: int
    gpu_least_bytes: int
    max_seq_length: int
    memory_bytes: int
    scratch_bytes: int
    cpu_request: int
    cpu_limit: int
    origin: str
    gpus: int = 1
    shm_bytes: int = SHM_BYTES
    tmp_bytes: int = TMP_BYTES

    @property
    def ephemeral_bytes(self) -> int:
        return self.scratch_bytes + self.tmp_bytes + LOG_BYTES

    def words(self) -> list[str]:
        """For the head of a file: where the figures come from."""
        memory = f"GPU memory, least: {self.gpu_least_bytes / GB:.1f} GB, {least_words(self.max_seq_length)}"
        quicker = "A run takes what is free to be quicker: `tunejob plan` has what is expected."
        if self.gpus == 1:
            return [f"Base model: {self.origin}.", f"{memory}; a card of {self.gpu_gb} GB or more.", quicker]
        return [
            f"Base model: {self.origin}.",
            f"{memory}; on each of {self.gpus} cards, which have {self.gpu_gb} GB or more.",
            quicker,
            f"Shared memory: {self.shm_bytes // GIB} GiB, by which NCCL hands over what NVLink and PCIe do not.",
        ]


def resources(spec: JobSpec, size: ModelSize, gpus: int = 1) -> Resources:
    """For training on `gpus`. Raises `CapacityError` if no single one is large enough."""
    least = least_card_bytes(spec, size)
    cards = [gb for gb in GPU_CLASSES_GB if least <= gb * GB]
    if not cards:
        hint = "Choose 4bit, a smaller max_seq_length or a smaller model: each of several GPUs holds all of it"
        found, expected = f"about {least / GB:.0f} GB ({size.origin})", f"at most {GPU_CLASSES_GB[-1]} GB"
        raise CapacityError(
            "this needs more memory than one GPU has", where="/model/source", found=found, expected=expected, hint=hint
        )
    needs = needs_by_stage(spec, size, gpus)
    disk = max(need.disk_bytes for need in needs)
    shared = SHM_BYTES + (gpus - 1) * SHM_BYTES_A_GPU
    memory = shared + max(need.ram_bytes for need in needs)
    many = bool(spec.export.gguf)  # llama.cpp quantises and evaluates on the cores
    return Resources(
        gpu_gb=cards[0],
        gpu_least_bytes=least,
        max_seq_length=spec.model.max_seq_length,
        memory_bytes=_up(memory, MEMORY_STEP_BYTES),
        scratch_bytes=_up(disk * DISK_MARGIN + OTHER_DISK_BYTES, DISK_STEP_BYTES),
        cpu_request=(7 if many else 3) + CORES_A_GPU * (gpus - 1),  # one of 8 or 4 is left to the node's own
        cpu_limit=(16 if many else 8) + CORES_A_GPU * (gpus - 1),
        origin=size.origin,
        gpus=gpus,
        shm_bytes=shared,
    )


def needs_by_stage(spec: JobSpec, size: ModelSize, gpus: int | None = None) -> list[Step]:
    """Scratch and memory of the training and of each step of the exports. `gpus`: how many, if all are taken."""
    gpus = gpus or spec.resources.known_gpus
    tokens = most_tokens(spec, spec.training.batch_size)
    own = PROCESS_BYTES + offloaded_bytes(spec, size, tokens, 0)
    training = _base_bytes(spec, size) + LOCAL_CHECKPOINTS * int(state_bytes(spec, size))
    exports = [Step(step.name, step.disk_bytes, own + step.ram_bytes) for step in _steps(spec, size)]
    # With several, each has a process like the run's own beside it
    return [Step("train", training, own * (gpus + 1 if gpus > 1 else 1)), *exports]


def _base_bytes(spec: JobSpec, size: ModelSize) -> int:
    """Copies of the fetched weights; local ones are linked."""
    fetched = 0.0 if size.local else packed_bytes(size) if size.quantised else 2 * size.parameters
    if spec.model.merge_base and "://" in spec.model.merge_base:
        fetched += 2 * size.parameters
    return int(fetched)


def _steps(spec: JobSpec, size: ModelSize) -> list[Step]:
    """What the exports need, with every GGUF on the disk at once: how many are made side by side is not known here."""
    if not spec.needs_merge:
        return []
    shapes = size.shapes()
    names = dict.fromkeys([*spec.export.gguf, *([shapes.gguf_type] if spec.export.converts else [])])
    sizes = {name: int(size.parameters * TYPES[name].bits_per_weight / 8) for name in names}
    memory = plan_memory(spec, shapes, TOKENIZER_BYTES, on_cpu=False)
    found = steps(spec, shapes, _base_bytes(spec, size), memory, sizes)
    quantise = Step("quantise", adapter_bytes(spec, shapes) + sum(sizes.values()), quantiser_bytes(shapes))
    return [quantise if step.name == quantise.name else step for step in found]


def _up(value: float, step: int) -> int:
    return math.ceil(value / step) * step
