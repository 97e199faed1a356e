"""Peak memory of each process of the exports, from the tensors' shapes.

What is counted is anonymous memory: a control group cannot take it back, whereas pages of mapped files, llama.cpp's
weights and the logits on disk among them, give way to what needs room. The terms were found by following `RssAnon`
through each process's parts, on models of 7 to 478 million weights; `tests/flow/test_export_memory.py` holds them
against real runs. On a GPU weights pass through host memory a tensor at a time; what was planned and seen there
is in tests/gpu/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from job.evaluation.generate import GENERATION_BATCH_TOKENS
from job.evaluation.probe import PROBE_TOKENS
from job.gguf.convert import BATCH_BYTES
from job.gguf.native import CHUNK_TOKENS
from job.gguf.quantise import BUFFER_BYTES
from job.gguf.types import TYPES
from job.host.cgroup import native_threads
from job.host.memory import MIB
from job.weights.layout import BLOCK_BYTES, merging_threads
from job.weights.shapes import NF4_BYTES, Shapes

# After the imports, from `RssAnon` in /proc/self/status (Python 3.11, torch 2.13 for the CPU, transformers 5.17, PEFT
# 0.21).
TRANSFORMERS_BYTES = 260 * MIB  # import torch, transformers, transformers.models.llama.modeling_llama
PEFT_BYTES = 64 * MIB  # import peft, after those
FIRST_USE_BYTES = 20 * MIB  # what generation, tokenizers and kernels load when first called
BITSANDBYTES_BYTES = 55 * MIB
# These processes are forked with transformers and PEFT in memory, which they share with the fork server and do not use.
CONVERTER_BYTES = 316 * MIB  # import gguf, conversion, and transformers' tokenizers; 265 where they are started
QUANTISER_BYTES = 335 * MIB  # import llama_cpp, and its vocabulary of 49,152; 34 where they are started
CHECK_BYTES = 317 * MIB  # import llama_cpp, safetensors; 158 where they are started
CUDA_BYTES = 97 * MIB  # what torch for CUDA takes more when it is imported
CONTEXT_BYTES = 232 * MIB  # the driver's context
FORWARD_BYTES = 258 * MIB  # libraries of the first forward pass on a GPU
GPU_MERGE_BYTES = 340 * MIB  # what merging on a GPU takes more than its blocks
TOKENIZER_FACTOR = 15  # memory of an open tokenizer over its files' size

FP32_BYTES, WEIGHT_BYTES = 4, 2
PACKED_BYTES = 0.6  # per weight in NF4: as in the files, its quantisation state, and what packing does not free
SHARD_BYTES = 5 * 10**9  # of a file of 4-bit weights
ROOM_BYTES = 3 << 30  # of a comparison on a GPU: activations, logits of a batch and the key-value cache
COMPARED_TOKENS = 256  # whose logits are compared at once
# Of the logits that are compared at once: both sides, their differences, log-probabilities, products
COMPARED_COPIES = 7
CACHED = ("k_proj", "v_proj", "qkv", "c_attn", "query_key_value")  # layers whose outputs are kept for later tokens
LOSS_COPIES = 3  # of those of which the loss is taken at once
BATCH_TOKENS = 1024  # of one forward pass whose logits are wanted: 0.5 GiB with a vocabulary of 128k
CHUNK_COPIES = 9  # of a chunk's logits: llama.cpp's two, and those of the comparison
CONVERTED_BYTES = 6  # per weight in flight: fp32 and rounded
FEW_THREADS = 4
QUANTISED_BYTES = 5.1  # per weight at once: fp32 and packed; the source is mapped
SLAB_WEIGHTS = int(BUFFER_BYTES / 7.1)  # source, fp32 and packed rows
IMATRIX_TOKENS = 4096  # of one forward pass
IMATRIX_COPIES = 5  # of the widest layer's inputs
GPU_BLOCK_COPIES = 3  # of it on the host: as read, and as it comes back
BLOCK_COPIES = 12  # of a block that a merging thread holds at most: as stored, in fp32, and what the test compares
DEQUANTISED_BYTES = 11  # per weight of a matrix: as stored, in fp32, packed, and in fp32 again
REPACKED_BYTES = 4.5 / 8  # a weight that llama.cpp keeps in another order
SUPER_BLOCK = 256  # weights of a row that k-quants pack together


@dataclass(frozen=True)
class Memory:
    """Bytes of anonymous memory that each process of the exports takes at its peak.

    `adapter_bytes` and `tokenizer_bytes` on disk, `check_tokens` compared, `learned_tokens` of them learned, and
    `imatrix_tokens` in the importance matrix; the longest compared row has `row_tokens`. The longest question with its
    answer has `question_tokens`, all of them `asked_tokens`. With less than fp32 weights need of `free_bytes`, the
    comparison leaves them mapped, in 16 bits.
    """

    shapes: Shapes
    adapter_bytes: int
    tokenizer_bytes: int
    check_tokens: int
    learned_tokens: int
    imatrix_tokens: int
    row_tokens: int
    question_tokens: int
    asked_tokens: int
    on_cpu: bool
    free_bytes: int | None = None

    def reload(self, precision: str) -> int:
        """The adapter on its base, in the precision of the training, the comparison with the probe, and its logits."""
        packed = self._linear if precision in ("4bit", "8bit") else 0
        weights = int(PACKED_BYTES * packed) + FP32_BYTES * (self.shapes.parameters - packed)
        probe = COMPARED_COPIES * min(PROBE_TOKENS, self.row_tokens)
        learned = LOSS_COPIES * min(COMPARED_TOKENS, self.learned_tokens)
        logits = self._logits(max(probe, learned, self._batch))
        more = PEFT_BYTES + FIRST_USE_BYTES
        beside = max(logits, self._answering)
        return self._torch(more) + self._opened(weights, packed > 0) + 2 * self.adapter_bytes + beside

    def four_bit(self) -> int:
        """NF4 from the merged files; a matrix passes through as fp32. From a GPU, a shard comes back to be written."""
        if self.on_cpu:
            return (
                self._torch(BITSANDBYTES_BYTES)
                + int(PACKED_BYTES * self._linear)
                + 3 * FP32_BYTES * self._largest_matrix
            )
        stored = int(NF4_BYTES * self._linear) + WEIGHT_BYTES * (self.shapes.parameters - self._linear)
        return self._torch(BITSANDBYTES_BYTES) + CONTEXT_BYTES + min(SHARD_BYTES, stored)

    def adapted(self) -> int:
        """Base and adapter in fp32, and the comparison of logits on the learned tokens."""
        learned = COMPARED_COPIES * min(COMPARED_TOKENS, self.learned_tokens)
        logits = self._logits(max(learned, self._batch))
        more = PEFT_BYTES + FIRST_USE_BYTES
        return self._torch(more) + self._opened(self._in_fp32(), False) + self.adapter_bytes + logits

    def compare(self) -> int:
        """A model in fp32 beside compared logits or the importance matrix; on a GPU, what of either stays."""
        weights = self._in_fp32()
        inputs = max(shape[1] for _, shape in self.shapes.matrices())
        imatrix = IMATRIX_COPIES * FP32_BYTES * inputs * min(IMATRIX_TOKENS, self.imatrix_tokens)
        logits = self._logits(COMPARED_COPIES * min(COMPARED_TOKENS, self.check_tokens))
        work = max(logits, imatrix, self._answering) if self.on_cpu else logits + imatrix
        return self._torch(PEFT_BYTES + FIRST_USE_BYTES) + self._opened(weights, False) + self.adapter_bytes + work

    def convert(self) -> int:
        """As many of the largest tensors at once as there are threads, within the converter's batch.

        With many threads the others of its batch are done while the largest, the vocabulary's, is still at work.
        """
        sizes, threads = sorted(self.shapes.sizes(), reverse=True), native_threads()
        together = max(sum(sizes[: min(threads, FEW_THREADS)]), sum(sizes[1 : threads + 1]))
        in_flight = min(together, max(sizes[0], BATCH_BYTES // FP32_BYTES))
        return CONVERTER_BYTES + self._cuda + TOKENIZER_FACTOR * self.tokenizer_bytes + CONVERTED_BYTES * in_flight

    def quant(self, name: str) -> int:
        """Quantising to `name`, then its acceptance test, in one process."""
        slab = int(QUANTISED_BYTES * min(self.shapes.largest, SLAB_WEIGHTS))
        return max(QUANTISER_BYTES + slab + self._cuda, self.check(name))

    def check(self, name: str) -> int:
        """The acceptance test of a GGUF: weights are mapped, but for those that llama.cpp packs anew."""
        return (
            CHECK_BYTES
            + self._cuda
            + self._evaluated()
            + self._cache(self.question_tokens, WEIGHT_BYTES)
            + int(TYPES[name].repacked_share * REPACKED_BYTES * self._packable(name))
        )

    def lora(self) -> int:
        """The adapter as GGUF, then its test on the base's."""
        cache = self._cache(self.question_tokens, WEIGHT_BYTES)
        return CONVERTER_BYTES + self._cuda + 2 * self.adapter_bytes + self._evaluated() + cache

    def merge(self, dequantised: bool) -> int:
        """Base and adapter to merged files, then their test by PEFT: a few blocks, whatever the model's size, and,
        where 4-bit weights are `dequantised`, the largest matrices whole.

        On a GPU this happens in the job's own process, and comes on top of what that holds.
        """
        block = (BLOCK_COPIES if self.on_cpu else GPU_BLOCK_COPIES) * min(
            BLOCK_BYTES, self._largest_matrix * WEIGHT_BYTES
        )
        if dequantised:
            block += (DEQUANTISED_BYTES if self.on_cpu else WEIGHT_BYTES) * self._largest_matrix
        beside = TOKENIZER_FACTOR * self.tokenizer_bytes + (0 if self.on_cpu else GPU_MERGE_BYTES)
        beside += BITSANDBYTES_BYTES if dequantised else 0
        return self._torch(PEFT_BYTES) + beside + merging_threads(self.on_cpu) * block

    def _torch(self, more: int) -> int:
        return TRANSFORMERS_BYTES + more + self._cuda

    @property
    def _cuda(self) -> int:
        return 0 if self.on_cpu else CUDA_BYTES

    def _opened(self, weights: int, packed: bool) -> int:
        """A model that is asked for answers. On a GPU its weights pass through, and what asks it stays."""
        if self.on_cpu:
            return weights
        return CONTEXT_BYTES + FORWARD_BYTES + (BITSANDBYTES_BYTES if packed else 0)

    def _in_fp32(self) -> int:
        """Weights of a comparison, mapped in 16 bits where they have no room."""
        weights = FP32_BYTES * self.shapes.parameters
        return 0 if self.free_bytes is not None and weights + ROOM_BYTES > self.free_bytes else weights

    @property
    def _batch(self) -> int:
        """Tokens whose logits a forward pass leaves in host memory."""
        return min(BATCH_TOKENS, self.check_tokens) if self.on_cpu else 0

    @property
    def _answering(self) -> int:
        """Keys and values of a batch of answers in host memory."""
        return self._cache(min(GENERATION_BATCH_TOKENS, self.asked_tokens), FP32_BYTES) if self.on_cpu else 0

    def _cache(self, tokens: int, number_bytes: int) -> int:
        """Keys and values of so many tokens; of layers that hold both in one matrix, as many as it has outputs."""
        outputs = sum(rows for name, (rows, _) in self.shapes.matrices() if any(word in name for word in CACHED))
        return tokens * number_bytes * outputs

    def _logits(self, tokens: int) -> int:
        return FP32_BYTES * tokens * self.shapes.vocabulary

    def _evaluated(self) -> int:
        return CHUNK_COPIES * FP32_BYTES * min(CHUNK_TOKENS, self.row_tokens) * self.shapes.vocabulary

    @property
    def _linear(self) -> int:
        return sum(rows * columns for _, (rows, columns) in self.shapes.matrices())

    @property
    def _largest_matrix(self) -> int:
        return max(rows * columns for _, (rows, columns) in self.shapes.matrices())

    def _packable(self, name: str) -> int:
        """Weights of the linear layers whose rows the type's blocks divide."""
        block = SUPER_BLOCK if "_k" in name else 32
        return sum(rows * columns for _, (rows, columns) in self.shapes.matrices() if columns % block == 0)
