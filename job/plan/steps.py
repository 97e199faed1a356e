"""What is made of the trained weights, in which order, and how much disk and memory each step takes.

Sizes follow from the tensors' shapes (safetensors headers), the list of exports and the number of compared tokens;
`tests/flow/test_everything.py` holds them against what a run really took.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from job.evaluation.probe import PROBE_TOKENS
from job.export.kinds import kind_of
from job.gguf.native import CHUNK_TOKENS
from job.gguf.types import TYPES
from job.host.cgroup import available_bytes, usable_cores
from job.plan.host_memory import Memory
from job.plan.model_size import adapter_bytes
from job.spec import JobSpec
from job.weights.shapes import Shapes

CORES_PER_QUANT = 4  # more make one quantiser hardly faster: its reading and writing are serial
GGUF_SPLIT_BYTES = 50_000_000_000  # what the Hub takes as one file
PROBE_BYTES = 4 * PROBE_TOKENS  # a word of the vocabulary in the report's probe


@dataclass(frozen=True)
class Step:
    """One step's own need: `disk_bytes` of scratch in all at its peak, `ram_bytes` of anonymous memory of the
    processes at work.

    Memory of the job's own process comes on top, and is taken already when a step is let in.
    """

    name: str
    disk_bytes: int
    ram_bytes: int


def steps(
    spec: JobSpec,
    shapes: Shapes,
    base_bytes: int,
    memory: Memory,
    gguf_bytes: Mapping[str, int],
    at_once: int = 1,
    early: Sequence[str] = (),
) -> list[Step]:
    """Needs of every step, with `at_once` quantisers and `early` types made beside the comparison.

    `base_bytes` of the fetched base are a copy in scratch, gone once it is merged. A tokenizer lies beside every set
    of weights. `gguf_bytes`: sizes of the GGUFs by type, that of the weights' own type among them, as llama.cpp
    plans them. Memory does not count mapped files, which give way to what needs room; that is so unless scratch
    itself lies in memory.
    """
    tokenizer_bytes = memory.tokenizer_bytes
    export, merged = spec.export, shapes.bytes + tokenizer_bytes
    adapter = adapter_bytes(spec, shapes) + tokenizer_bytes + PROBE_BYTES * shapes.vocabulary
    forms = [form for name in spec.artefacts if (form := kind_of(name).form)]
    formed = sum(form.disk_bytes(shapes) + tokenizer_bytes for form in forms)
    compared = 4 * memory.check_tokens * shapes.vocabulary  # logits of one model
    there = base_bytes + adapter + compared  # those of the trained model lie there to the end
    original = compared if compares_original(spec) else 0  # of the adapter on its 16-bit base, until the merge's are
    own = gguf_bytes.get(shapes.gguf_type, 0)  # made beside the comparison
    converter = memory.convert() if own else 0
    sizes = {name: gguf_bytes[name] for name in export.gguf if name != shapes.gguf_type}
    largest_first = sorted(sizes, key=sizes.__getitem__, reverse=True)
    beside = own + sum(sizes[name] for name in early)
    beside_ram = max([converter, *map(memory.quant, early)])  # one after the other
    found = [Step("reload", there, memory.reload(spec.model.precision))]
    if original:
        found.append(Step("adapted", there + original, memory.adapted()))
    found.append(Step("merge", there + original + merged, memory.merge(may_dequantise(spec))))
    beside_merge = there + original + merged + formed + beside
    found += [Step(form.step, beside_merge, form.ram_bytes(memory) + beside_ram) for form in forms]
    sides = 2 * compared if forms else compared  # the merge's logits, and those of one of its other forms
    found.append(Step("compare", beside_merge + sides, memory.compare() + beside_ram))
    if own:
        found.append(Step("convert", there + compared + merged + beside, converter))
        on_disk = sum(sizes[name] for name in largest_first[: at_once + 1])  # one more is being uploaded
        largest = max(map(memory.quant, sizes), default=memory.check(shapes.gguf_type))
        makes_more = beside_ram if early else 0  # the first are tested while the others of them are still made
        found.append(Step("quantise", adapter + 2 * compared + own + on_disk, at_once * largest + makes_more))
    if export.lora_gguf:
        found.append(
            Step(
                "adapter",
                there + original + merged + compared + 2 * own + adapter // 2,
                beside_ram + max(memory.lora(), memory.convert()),
            )
        )
    return found


def compares_original(spec: JobSpec) -> bool:
    """Whether the adapter is measured on its original 16-bit base, which is another one than it was trained on: to
    choose, or as what the merge, or the adapter alone as GGUF, must say.
    """
    only_trained = spec.model.precision == "4bit" and spec.export.merge_onto == "trained"
    packed = spec.lora is not None and spec.model.precision in ("4bit", "8bit")
    return packed and (not only_trained or any(kind_of(name).on_base for name in spec.artefacts))


def may_dequantise(spec: JobSpec) -> bool:
    """Whether the adapter may be merged onto the weights that the training held in 4 bits."""
    return spec.lora is not None and spec.model.precision == "4bit" and spec.export.merge_onto != "original"


def made_early(spec: JobSpec, gguf_bytes: Mapping[str, int], own_type: str, at_once: int, on_cpu: bool) -> list[str]:
    """Types made right after the conversion, while the merge is still compared: where that needs no busy cores."""
    largest_first = sorted(
        (name for name in spec.export.gguf if name != own_type), key=gguf_bytes.__getitem__, reverse=True
    )
    return [] if on_cpu else [name for name in largest_first[:at_once] if not takes_imatrix(spec, name)]


def takes_imatrix(spec: JobSpec, name: str) -> bool:
    """Whether a type is made with the importance matrix, which is there once the merge is compared."""
    return spec.export.imatrix and TYPES[name].uses_imatrix


@dataclass(frozen=True)
class Sizes:
    """Tokens of what everything is measured on: in all, learned, in the longest row; in the longest question with its
    answer, and in all questions with theirs.
    """

    compared: int
    learned: int
    longest_row: int
    longest_question: int
    asked: int


def plan_memory(
    spec: JobSpec,
    shapes: Shapes,
    tokenizer_bytes: int,
    on_cpu: bool,
    measured_on: Sizes | None = None,
    free_bytes: int | None = None,
) -> Memory:
    """Peak memory of each process of the exports; where `measured_on` is unknown, as much as the spec lets in."""
    export = spec.export
    most = Sizes(export.check_tokens, export.check_tokens, CHUNK_TOKENS, CHUNK_TOKENS, CHUNK_TOKENS)
    found = measured_on or most
    return Memory(
        shapes,
        adapter_bytes(spec, shapes),
        tokenizer_bytes,
        found.compared,
        found.learned,
        export.imatrix_tokens if export.imatrix else 0,
        min(found.longest_row, spec.model.max_seq_length, export.check_tokens),
        found.longest_question,
        found.asked,
        on_cpu,
        free_bytes,
    )


def quantiser_bytes(shapes: Shapes) -> int:
    """Memory of one quantiser and the test of what it makes, at most, packed weights aside."""
    return Memory(shapes, 0, 0, 0, 0, 0, CHUNK_TOKENS, 0, 0, True).quant("q8_0")


def parallel_quants(gguf_bytes: Mapping[str, int], shapes: Shapes) -> int:
    """How many quantisers work side by side: at least one, or as cores and memory for their mapped files allow."""
    by_memory = available_bytes() // (quantiser_bytes(shapes) + max(gguf_bytes.values()))
    return max(1, min(len(gguf_bytes), usable_cores() // CORES_PER_QUANT, by_memory))
