"""What a job needs of a machine, worked out from its spec before anything is fetched.

Upper estimates, to rent or reserve by; the run itself checks the lower bounds (`job.plan.require`). The figures per
token were fitted to peaks measured on an H200 with models of 1.2e9 and 8e9 weights
(tests/unit/test_render_resources.py compares).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from job.errors import CapacityError, Fault
from job.gguf.types import TYPES
from job.plan.adapter import ADAPTER_BYTES_PER_WEIGHT, adapter_bytes
from job.plan.model_size import ModelSize
from job.plan.require import FULL_TRAINING_BYTES, WEIGHT_BYTES
from job.plan.steps import Step, plan_memory, quantiser_bytes, steps
from job.spec import JobSpec
from job.weights.shapes import NF4_BYTES

GIB = 1 << 30
GB = 10**9
# Bytes for each token in a forward pass: times the model's width, and once more times its layers where nothing is
# recomputed.
BLOCK_BYTES = 56
KEPT_BYTES = 31
CHECKPOINT_BYTES = 2
LOGIT_BYTES = 8  # peft: the logits in fp32, and their gradient
ADAPTER_BYTES = 12  # per weight of the adapter: itself, gradient, moments
FULL_MOMENTS_BYTES = 8  # moments in fp32 where the optimiser is no 8-bit one
GPU_CONTEXT_BYTES = GIB
GPU_MARGIN = 1.05
# Sizes of cards that are rented singly, from the smallest with bf16 that every cloud has to the largest.
GPU_CLASSES_GB = (24, 40, 48, 80, 141, 180)

PROCESS_BYTES = 8 * GIB  # Python with torch, CUDA's and the trainer's own, rows, pinned buffers
SHM_BYTES = 2 * GIB  # counts as memory
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
    """One GPU of `gpu_gb` (10^9 bytes, as cards are named); `origin` says how the model's size is known."""

    gpu_gb: int
    gpu_needed_bytes: int
    memory_bytes: int
    scratch_bytes: int
    cpu_request: int
    cpu_limit: int
    origin: str
    shm_bytes: int = SHM_BYTES
    tmp_bytes: int = TMP_BYTES

    @property
    def ephemeral_bytes(self) -> int:
        return self.scratch_bytes + self.tmp_bytes + LOG_BYTES

    def words(self) -> list[str]:
        """For the head of a file: where the figures come from."""
        return [
            f"Base model: {self.origin}.",
            f"GPU memory: {self.gpu_needed_bytes / GB:.1f} GB estimated, a card of {self.gpu_gb} GB or more.",
        ]


def resources(spec: JobSpec, size: ModelSize) -> Resources:
    """Raises `CapacityError` if no single GPU is large enough."""
    needed = gpu_bytes(spec, size)
    cards = [gb for gb in GPU_CLASSES_GB if fits(needed, gb * GB)]
    if not cards:
        hint = "Choose 4bit, a smaller batch_size or max_seq_length, or gradient_checkpointing; several GPUs come in a later version"  # noqa: E501
        found, expected = f"about {needed / GB:.0f} GB ({size.origin})", f"at most {GPU_CLASSES_GB[-1]} GB"
        raise CapacityError(
            Fault(
                "this needs more memory than one GPU has",
                where="/model/source",
                found=found,
                expected=expected,
                hint=hint,
            )
        )
    steps = _steps(spec, size)
    training = _base_bytes(spec, size) + LOCAL_CHECKPOINTS * _state_bytes(spec, size)
    disk = max([training, *(step.disk_bytes for step in steps)])
    memory = PROCESS_BYTES + SHM_BYTES + _offloaded_bytes(spec, size) + max([0, *(step.ram_bytes for step in steps)])
    many = bool(spec.export.gguf)  # llama.cpp quantises and evaluates on the cores
    return Resources(
        gpu_gb=cards[0],
        gpu_needed_bytes=needed,
        memory_bytes=_up(memory, MEMORY_STEP_BYTES),
        scratch_bytes=_up(disk * DISK_MARGIN + OTHER_DISK_BYTES, DISK_STEP_BYTES),
        cpu_request=7 if many else 3,  # one of 8 or 4 is left to the node's own
        cpu_limit=16 if many else 8,
        origin=size.origin,
    )


def fits(needed_bytes: int, card_bytes: int) -> bool:
    """Whether a training of that peak fits a card of that memory."""
    return needed_bytes * GPU_MARGIN + GPU_CONTEXT_BYTES <= card_bytes


def gpu_bytes(spec: JobSpec, size: ModelSize) -> int:
    """Peak of the memory reserved in training."""
    tokens = spec.training.batch_size * spec.model.max_seq_length
    width = tokens * size.hidden
    activations = BLOCK_BYTES * width
    if spec.training.gradient_checkpointing is False:
        activations = KEPT_BYTES * width * size.layers
    elif spec.training.gradient_checkpointing is True:
        activations += CHECKPOINT_BYTES * width * size.layers
    logits = LOGIT_BYTES * tokens * size.vocabulary if spec.model.backend == "peft" else 0
    return int(_weight_bytes(spec, size) + _state_bytes(spec, size) + activations + logits)


def _state_bytes(spec: JobSpec, size: ModelSize) -> float:
    """What is trained, with its gradient and moments; of the frozen weights nothing."""
    if spec.model.precision != "full":
        return ADAPTER_BYTES * adapter_bytes(spec, size.shapes()) / ADAPTER_BYTES_PER_WEIGHT
    moments = 0 if "8bit" in spec.training.optimizer else FULL_MOMENTS_BYTES
    return size.parameters * (FULL_TRAINING_BYTES + moments)


def _weight_bytes(spec: JobSpec, size: ModelSize) -> float:
    if spec.model.precision == "4bit":
        return _packed_bytes(size)
    return size.parameters * WEIGHT_BYTES[spec.model.precision]


def _packed_bytes(size: ModelSize) -> float:
    """In NF4, the tables of the vocabulary in 16 bits."""
    return NF4_BYTES * (size.parameters - size.embedding_parameters) + 2 * size.embedding_parameters


def _offloaded_bytes(spec: JobSpec, size: ModelSize) -> int:
    """Unsloth's checkpointing keeps each layer's input in host memory."""
    if spec.training.gradient_checkpointing != "unsloth":
        return 0
    return CHECKPOINT_BYTES * spec.training.batch_size * spec.model.max_seq_length * size.hidden * size.layers


def _base_bytes(spec: JobSpec, size: ModelSize) -> int:
    """Copies of the fetched weights; local ones are linked."""
    fetched = 0.0 if size.local else _packed_bytes(size) if size.quantised else 2 * size.parameters
    if spec.model.merge_base and "://" in spec.model.merge_base:
        fetched += 2 * size.parameters
    return int(fetched)


def _steps(spec: JobSpec, size: ModelSize) -> list[Step]:
    """What the exports need, as if every GGUF lay on the disk at once: how many are made side by side is the
    machine's affair.
    """
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
