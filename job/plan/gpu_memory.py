"""Memory of a GPU in training, and whether a card has it: the one reckoning of `plan`, `render`, `init`, of what a run
refuses and of how it computes a step.

    peak = weights + what is trained, with gradients and moments + room to work
           + tokens of a forward pass x bytes of a layer x (layers that keep their activations + 1.5)

Set with measured peaks on an H200, and within 10 % of each of them (tests/gpu/steps.jsonl, tests/unit/test_choice.py);
tests/gpu/README.md says which runs set which term, and which only check them.
"""

from __future__ import annotations

from dataclasses import dataclass

from job.host.memory import GIB
from job.plan.model_size import ADAPTER_BYTES_PER_WEIGHT, ModelSize, adapter_bytes
from job.spec import JobSpec
from job.training.methods import METHODS
from job.weights.shapes import NF4_BYTES

WEIGHT_BYTES = {"4bit": 0.5, "8bit": 1.0, "16bit": 2.0, "full": 2.0}  # per parameter, scales left out
FULL_TRAINING_BYTES = 2.0 + 2.0  # gradient and 8-bit Adam moments, per parameter
FULL_MOMENTS_BYTES = 8  # moments in fp32 where the optimiser is not an 8-bit one
TABLE_MOMENTS_BYTES = 6  # more, of an embedding: its moments stay in fp32
HEAD_GRADIENT_BYTES = 4  # of the output layer, while its gradient is summed up
ADAPTER_BYTES = 10  # per weight of the adapter: itself, gradient, moments
FP8_BYTES = 2  # per weight of the layers, beside it: one for each direction
CACHE_BYTES = 4  # per width, layer and token: key and value in 16 bits
CHECKPOINT_BYTES = 2  # of a layer's input, per number
WIDTH_BYTES = 9  # per token, layer and width: norms, attention, residuals
PRODUCT_BYTES = 4 / 3  # per token and weight of a layer, divided by the width: outputs of its products
LOGIT_BYTES = 12  # per token and word, of methods that have all logits at once; not measured
AT_WORK = 1.5  # layers whose activations are there while one is computed again, or a kept one's gradients are
# Beside Unsloth's fused layers with an adapter: modules of transformers, 8-bit products, padded batches with a mask.
PLAIN_LAYERS, FULL_LAYERS, EIGHT_BIT_LAYERS, PADDED_LAYERS = 1.5, 1.3, 1.83, 1.1
WORK_BYTES = 110 << 10  # per width, of Unsloth: parts of its loss, buffers
GATHERED_LAYERS, GATHERED_BYTES = 2, 4  # of spread weights: put together at once, with their gradients; not measured
DEQUANTISED = 1.5  # weights of a layer, in bytes each
GPU_CONTEXT_BYTES = GIB
MOST_AT_ONCE = 256  # rows of a forward pass that is chosen
GPU_MARGIN = 1.05


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a card, by three names that `plan`, `render` and `init` share. `expected`: with the rows that there are,
    computed as quickly as the card lets. `at_most`: the same, as if every row were `max_seq_length` long. `least`: as
    sparingly as the spec lets, with rows of that length. All with the driver's context, the last two with the margin of
    `fits`.
    """

    least: int
    expected: int
    at_most: int


def gpu_memory(spec: JobSpec, size: ModelSize, rows: int, longest_tokens: int, kept_layers: int) -> GpuMemory:
    """For forward passes of so many `rows`, the longest of which has `longest_tokens`; a pair those of both answers."""
    expected, most = (
        gpu_bytes(spec, size, tokens, kept_layers) for tokens in (rows * longest_tokens, most_tokens(spec, rows))
    )
    share = vllm_share(spec)
    return GpuMemory(
        least_card_bytes(spec, size), int((expected + GPU_CONTEXT_BYTES) / (1 - share)), card_bytes(most, share)
    )


def least_card_bytes(spec: JobSpec, size: ModelSize) -> int:
    """The `least` of `GpuMemory`, for which nothing of the rows must be known."""
    share = vllm_share(spec)
    answering = vllm_least_bytes(size) / share if share else 0
    return max(card_bytes(least_gpu_bytes(spec, size), share), int(answering))


def least_words(max_seq_length: int) -> str:
    """What `least` is meant for."""
    return f"as sparingly as the spec lets with rows of max_seq_length {max_seq_length}"


def card_bytes(peak_bytes: int, share: float = 0.0) -> int:
    """What a card must have for a training of that peak beside vLLM, which has that share of it."""
    return int((int(peak_bytes * GPU_MARGIN) + GPU_CONTEXT_BYTES) / (1 - share))


def vllm_share(spec: JobSpec) -> float:
    """Of a card's memory, what the training has not."""
    return spec.training.grpo.vllm_share if spec.training.grpo else 0.0


def vllm_least_bytes(size: ModelSize) -> int:
    """Without which vLLM cannot begin: its copy of the weights, and room to work; not measured."""
    return int(WEIGHT_BYTES["16bit"] * size.parameters) + GPU_CONTEXT_BYTES


def fits(peak_bytes: int, available_bytes: int) -> bool:
    """Whether a training of that peak fits a card of that memory."""
    return card_bytes(peak_bytes) <= available_bytes


def activation_budget(spec: JobSpec, size: ModelSize, usable_bytes: int) -> float:
    """What is left for `activation_bytes` where PyTorch may have so many bytes; negative where there is nothing."""
    own = usable_bytes - vllm_share(spec) * (usable_bytes + GPU_CONTEXT_BYTES)
    return own / GPU_MARGIN - fixed_bytes(spec, size)


def gpu_bytes(spec: JobSpec, size: ModelSize, tokens: int, kept_layers: int) -> int:
    """Peak of the memory reserved in training, with so many `tokens` in a forward pass, padding among them."""
    return int(fixed_bytes(spec, size) + activation_bytes(spec, size, tokens, kept_layers))


def least_gpu_bytes(spec: JobSpec, size: ModelSize) -> int:
    """Peak with rows of `max_seq_length` where a step is computed as sparingly as the spec lets it."""
    training = spec.training
    rows = rows_at_once(spec)[0]
    kept_layers = size.layers if training.gradient_checkpointing is False else 0
    return gpu_bytes(spec, size, most_tokens(spec, rows), kept_layers)


def rows_at_once(spec: JobSpec) -> list[int]:
    """Of a forward pass, what the spec lets be chosen: what a step can be cut into, the fewest first. Where the loss of
    a method is not that of a whole step, however it is cut, `auto` is the spec's `batch_size`.
    """
    training, method = spec.training, METHODS[spec.training.method]
    if training.micro_batch != "auto":
        return [training.micro_batch]
    if not method.loss_of_step:
        return [training.batch_size]
    return divisors(training.batch_size * training.gradient_accumulation_steps)


def most_processes(spec: JobSpec) -> int:
    """That have work in every step: as many as it has forward passes, at most."""
    training = spec.training
    return training.batch_size * training.gradient_accumulation_steps // rows_at_once(spec)[0]


def divisors(rows: int) -> list[int]:
    """Up to a number beyond which no GPU gets quicker."""
    return [count for count in range(1, min(rows, MOST_AT_ONCE) + 1) if rows % count == 0]


def fixed_bytes(spec: JobSpec, size: ModelSize) -> float:
    """What does not depend on the rows."""
    work = WORK_BYTES * size.hidden if spec.model.backend == "unsloth" else 0
    held = weight_bytes(spec, size) + fp8_bytes(spec, size) + state_bytes(spec, size)
    if spec.resources.spreads:
        gathered = GATHERED_LAYERS * size.layer_parameters + size.embedding_parameters
        held = held / spec.resources.known_gpus + gathered * GATHERED_BYTES
    return held + answer_bytes(spec, size) + work + DEQUANTISED * size.layer_parameters


def answer_bytes(spec: JobSpec, size: ModelSize) -> int:
    """Of the keys and values while the answers of a step are given, as if no heads shared them; not measured."""
    training = spec.training
    if METHODS[training.method].answers(spec) == 1 or vllm_share(spec):  # vLLM has them in its share
        return 0
    answers = training.batch_size * training.gradient_accumulation_steps
    return CACHE_BYTES * size.hidden * size.layers * answers * spec.model.max_seq_length


def activation_bytes(spec: JobSpec, size: ModelSize, tokens: int, kept_layers: int) -> int:
    """What a pass over so many `tokens` keeps for its backward pass, and needs to compute the rest again."""
    inputs = 0
    if spec.training.gradient_checkpointing is True or spec.model.backend == "peft":  # otherwise they are on the host
        inputs = CHECKPOINT_BYTES * size.hidden * (size.layers - kept_layers)
    logits = 0 if METHODS[spec.training.method].loss_of_step else LOGIT_BYTES * size.vocabulary
    return int(tokens * (layer_bytes(spec, size) * (kept_layers + AT_WORK) + inputs + logits))


def layer_bytes(spec: JobSpec, size: ModelSize) -> float:
    """Of one layer's activations, per token."""
    fused = PRODUCT_BYTES * size.layer_parameters / size.hidden + WIDTH_BYTES * size.hidden
    if spec.model.backend == "peft":
        return fused * PLAIN_LAYERS
    if spec.model.precision == "full":
        return fused * FULL_LAYERS
    if spec.model.precision == "8bit":
        return fused * EIGHT_BIT_LAYERS
    return fused if spec.data.packing else fused * PADDED_LAYERS


def most_tokens(spec: JobSpec, rows: int) -> int:
    """Of a micro-batch of so many rows, of which a pair has two sequences."""
    return rows * METHODS[spec.training.method].sequences * spec.model.max_seq_length


def least_bytes(precision: str, parameters: int) -> float:
    """The weights alone, with gradients and moments where all are trained: what has less cannot even begin."""
    return parameters * (WEIGHT_BYTES[precision] + (FULL_TRAINING_BYTES if precision == "full" else 0))


def state_bytes(spec: JobSpec, size: ModelSize) -> float:
    """What is trained, with its gradient and moments; of the frozen weights nothing."""
    if spec.model.precision != "full":
        return (ADAPTER_BYTES + _copy_bytes(spec)) * adapter_bytes(spec, size.shapes()) / ADAPTER_BYTES_PER_WEIGHT
    table = size.embedding_parameters / size.tables
    head = HEAD_GRADIENT_BYTES * table
    if "8bit" in spec.training.optimizer:
        return size.parameters * FULL_TRAINING_BYTES + TABLE_MOMENTS_BYTES * table + head
    return size.parameters * (FULL_TRAINING_BYTES + FULL_MOMENTS_BYTES) + head


def _copy_bytes(spec: JobSpec) -> int:
    """Per weight, of the given adapter beside the trained one, where it is what a method compares with."""
    rewards = METHODS[spec.training.method].rewards
    return ADAPTER_BYTES_PER_WEIGHT if spec.model.adapter and rewards and rewards.by_reference else 0


def weight_bytes(spec: JobSpec, size: ModelSize) -> float:
    """Of the base on the card: the tables of the vocabulary are in 16 bits in any case."""
    if spec.model.precision == "4bit":
        return packed_bytes(size)
    tables = 2 * size.embedding_parameters
    return tables + (size.parameters - size.embedding_parameters) * WEIGHT_BYTES[spec.model.precision]


def fp8_bytes(spec: JobSpec, size: ModelSize) -> int:
    """Of the weights of all layers, made once for their products."""
    return FP8_BYTES * (size.parameters - size.embedding_parameters) if spec.training.compute == "fp8" else 0


def packed_bytes(size: ModelSize) -> float:
    """In NF4, the tables of the vocabulary in 16 bits."""
    return NF4_BYTES * (size.parameters - size.embedding_parameters) + 2 * size.embedding_parameters


def offloaded_bytes(spec: JobSpec, size: ModelSize, tokens: int, kept_layers: int) -> int:
    """Of host memory: Unsloth's checkpointing keeps the input of each layer that is computed again there."""
    if spec.model.backend == "peft" or spec.training.gradient_checkpointing in (True, False):
        return 0
    return CHECKPOINT_BYTES * tokens * size.hidden * (size.layers - kept_layers)
