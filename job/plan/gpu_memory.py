"""Memory of a GPU in training, and whether a card has it: the one reckoning of `plan`, `render`, `init` and of what a
run refuses.

The figures per token were fitted to peaks measured on an H200 with models of 1.2e9 and 8e9 weights
(tests/unit/test_render_resources.py compares).
"""

from __future__ import annotations

from dataclasses import dataclass

from job.plan.adapter import ADAPTER_BYTES_PER_WEIGHT, adapter_bytes
from job.plan.model_size import ModelSize
from job.spec import JobSpec
from job.training.methods import METHODS
from job.weights.shapes import NF4_BYTES

GIB = 1 << 30
WEIGHT_BYTES = {"4bit": 0.5, "8bit": 1.0, "16bit": 2.0, "full": 2.0}  # per parameter, scales left out
FULL_TRAINING_BYTES = 2.0 + 2.0  # gradient and 8-bit Adam moments, per parameter
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


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a card. `low`: weights and what is trained of them, without a token. `expected`: with the longest rows
    that there are in a micro-batch. `high`: as if every row were `max_seq_length` long, with the margin of `fits`.
    All with the driver's context.
    """

    low: int
    expected: int
    high: int


def gpu_memory(spec: JobSpec, size: ModelSize, rows: int, longest_tokens: int) -> GpuMemory:
    """For micro-batches of so many `rows`, the longest of which has `longest_tokens`; a pair those of both answers."""
    low, expected, most = (
        gpu_bytes(spec, size, tokens) for tokens in (0, rows * longest_tokens, most_tokens(spec, rows))
    )
    return GpuMemory(low + GPU_CONTEXT_BYTES, expected + GPU_CONTEXT_BYTES, card_bytes(most))


def card_bytes(peak_bytes: int) -> int:
    """What a card must have for a training of that peak."""
    return int(peak_bytes * GPU_MARGIN) + GPU_CONTEXT_BYTES


def fits(peak_bytes: int, available_bytes: int) -> bool:
    """Whether a training of that peak fits a card of that memory."""
    return card_bytes(peak_bytes) <= available_bytes


def gpu_bytes(spec: JobSpec, size: ModelSize, tokens: int | None = None) -> int:
    """Peak of the memory reserved in training, with so many `tokens` in a micro-batch; as many as the spec allows
    where they are not known.
    """
    if tokens is None:
        tokens = most_tokens(spec, spec.training.batch_size)
    width = tokens * size.hidden
    activations = BLOCK_BYTES * width
    if spec.training.gradient_checkpointing is False:
        activations = KEPT_BYTES * width * size.layers
    elif spec.training.gradient_checkpointing is True:
        activations += CHECKPOINT_BYTES * width * size.layers
    logits = LOGIT_BYTES * tokens * size.vocabulary if spec.model.backend == "peft" else 0
    return int(weight_bytes(spec, size) + state_bytes(spec, size) + activations + logits)


def most_tokens(spec: JobSpec, rows: int) -> int:
    """Of a micro-batch of so many rows, of which a pair has two sequences."""
    return rows * METHODS[spec.training.method].sequences * spec.model.max_seq_length


def least_bytes(precision: str, parameters: int) -> float:
    """The weights alone, with gradients and moments where all are trained: what has less cannot even begin."""
    return parameters * (WEIGHT_BYTES[precision] + (FULL_TRAINING_BYTES if precision == "full" else 0))


def state_bytes(spec: JobSpec, size: ModelSize) -> float:
    """What is trained, with its gradient and moments; of the frozen weights nothing."""
    if spec.model.precision != "full":
        return ADAPTER_BYTES * adapter_bytes(spec, size.shapes()) / ADAPTER_BYTES_PER_WEIGHT
    moments = 0 if "8bit" in spec.training.optimizer else FULL_MOMENTS_BYTES
    return size.parameters * (FULL_TRAINING_BYTES + moments)


def weight_bytes(spec: JobSpec, size: ModelSize) -> float:
    """Of the base on the card."""
    if spec.model.precision == "4bit":
        return packed_bytes(size)
    return size.parameters * WEIGHT_BYTES[spec.model.precision]


def packed_bytes(size: ModelSize) -> float:
    """In NF4, the tables of the vocabulary in 16 bits."""
    return NF4_BYTES * (size.parameters - size.embedding_parameters) + 2 * size.embedding_parameters


def offloaded_bytes(spec: JobSpec, size: ModelSize) -> int:
    """Of host memory: Unsloth's checkpointing keeps each layer's input there."""
    if spec.training.gradient_checkpointing != "unsloth":
        return 0
    return CHECKPOINT_BYTES * most_tokens(spec, spec.training.batch_size) * size.hidden * size.layers
