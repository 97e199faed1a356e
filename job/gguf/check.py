"""The acceptance test of a GGUF: is it what its name says, with the trained template, and what the model knows?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import Fault, GateError
from job.gguf.expected import Expected, Tokenised
from job.gguf.header import Header, Written, read_header, read_model_header
from job.gguf.native import Model, opened
from job.gguf.quality import Against, Quality, Reference, measure, read_reference
from job.gguf.quantise import IMATRIX_ENTRIES, planned_types
from job.gguf.types import TYPES, QuantType

SHOWN = 3  # of many equal faults
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}  # GGUF's word, ours


@dataclass(frozen=True)
class Checked:
    """A good file, the seconds its test took, and how many tensors its type does not fit (None for an adapter)."""

    file: Written
    quality: Quality
    fallback_tensors: int | None = None

    def figures(self) -> dict[str, Any]:
        """As they are reported."""
        names = ("perplexity", "perplexity_rise", "kl", "same_top_token", "stopped")
        fallbacks = {} if self.fallback_tensors is None else {"fallback_tensors": self.fallback_tensors}
        known = {name: getattr(self.quality, name) for name in names} | {"tensors": self.file.tensors} | fallbacks
        return known | {"tokens_per_second": self.quality.tokens_per_second}


def check(file: Path, key: str, type_name: str, source: Path | None, expected: Expected, against: Against) -> Checked:
    """`file` is the first of several if it was split; `source` the 16-bit GGUF it was made from, None if it is one.

    Raises one `GateError` with every fault (pointer `key`, figure, limit).
    """
    started = time.monotonic()
    header, known = read_model_header(file, key), read_reference(against.reference)
    faults = [*_type_faults(header, key, TYPES[type_name], source), *special_faults(header, key, expected)]
    if source is not None:
        faults += _shape_faults(header, read_header(source, source.name), key)
    with opened(file, key) as model:
        faults += _unequal("the size of the vocabulary differs from the model's", key, model.tokens, known.vocabulary)
        faults += token_faults(model, key, expected)
        faults += text_faults(model, key, expected.texts)
        quality = _measured(model, known, against, None, key) if model.tokens == known.vocabulary else None
    if quality is not None:
        faults += quality_faults(quality, known, key, against.limits)
    if faults or quality is None:
        raise GateError(*faults)
    return Checked(Written.since(started, header), quality, fallbacks(header, TYPES[type_name]))


def check_lora(base: Path, lora: Path, key: str, type_name: str, against: Against) -> Checked:
    """The same for a LoRA file (`key` is its key) on top of the 16-bit GGUF of its base, against adapter and base."""
    started = time.monotonic()
    header, known = read_header(lora, key), read_reference(against.reference)
    faults = list(_lora_faults(header, read_model_header(base, base.name), key, TYPES[type_name]))
    with opened(base, base.name) as model:
        quality = _measured(model, known, against, lora, key)
    faults += quality_faults(quality, known, key, against.limits)
    if faults:
        raise GateError(*faults)
    return Checked(Written.since(started, header), quality)


def _measured(model: Model, known: Reference, against: Against, lora: Path | None, key: str) -> Quality:
    return measure(model, known, read_reference(against.trained), against.asked, against.threads, lora, key)


def fallbacks(header: Header, kind: QuantType) -> int:
    """Tensors that this type does not fit, because the length of their rows is not a multiple of its block."""
    return sum(len(t.shape) > 1 and t.type != "F32" and t.shape[0] % kind.block != 0 for t in header.tensors.values())


# ------------------------------------------------------------------------------------------- what the file says


def _type_faults(header: Header, key: str, kind: QuantType, source: Path | None) -> Iterator[Fault]:
    file_type = header.metadata.get("general.file_type")
    if file_type != kind.file_type:
        yield Fault(
            "the file's type is not the one in its name",
            where=key,
            found=f"general.file_type {file_type}",
            expected=f"{kind.file_type} ({kind.label})",
        )
    if source is None:
        planned = {t.name: kind.tensor_type for t in header.tensors.values() if len(t.shape) > 1 and t.type != "F32"}
        bulk = max(header.tensors.values(), key=lambda t: t.bytes).type
        yield from _unequal("the bulk of the weights is of another type", key, bulk, kind.tensor_type)
    else:
        planned = planned_types(source, kind.label.lower(), IMATRIX_ENTRIES in header.metadata)
    wrong = [(t, planned[t.name]) for t in header.tensors.values() if planned.get(t.name, t.type) != t.type]
    if wrong:
        found = ", ".join(f"{t.name} {t.type}" for t, _ in wrong[:SHOWN])
        wanted = ", ".join(right for _, right in wrong[:SHOWN])
        yield Fault(
            f"{len(wrong)} of {len(header.tensors)} tensors are not of the type that {kind.label} gives them",
            where=key,
            found=found,
            expected=wanted,
        )


def _lora_faults(header: Header, base: Header, key: str, kind: QuantType) -> Iterator[Fault]:
    wanted = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": base.metadata["general.architecture"],
    }
    for name, value in wanted.items():
        yield from _unequal(f"{name} is not that of this adapter", key, header.metadata.get(name), value)
    fitting = [t for t in header.tensors.values() if t.shape[0] % kind.block == 0]
    wrong = [t for t in fitting if t.type != kind.tensor_type]
    if wrong or not fitting:
        found = ", ".join(f"{t.name} {t.type}" for t in wrong[:SHOWN])
        yield Fault(
            f"{len(wrong)} of {len(header.tensors)} tensors are of another type",
            where=key,
            found=found,
            expected=kind.tensor_type,
        )


def _shape_faults(header: Header, source: Header, key: str) -> Iterator[Fault]:
    count, wanted = len(header.tensors), len(source.tensors)
    yield from _unequal("the number of tensors differs from the 16-bit file", key, count, wanted)
    found = {name: tensor.shape for name, tensor in header.tensors.items()}
    for name, tensor in source.tensors.items():
        if name in found:
            yield from _unequal(f"the shape of {name} differs from the 16-bit file", key, found[name], tensor.shape)


def special_faults(header: Header, key: str, expected: Expected) -> Iterator[Fault]:
    for word, name in SPECIAL.items():
        found, wanted = header.metadata.get(f"tokenizer.ggml.{word}_token_id"), getattr(expected, name)
        if wanted is not None:
            yield from _unequal(f"{name} is not the trained tokenizer's", key, found, wanted)
    found, wanted = header.metadata.get("tokenizer.chat_template"), expected.chat_template
    if found != wanted:
        yield Fault(
            "the chat template is not the trained one",
            where=key,
            found=_difference(found, wanted),
            expected="none" if wanted is None else f"{len(wanted.encode())} bytes, the same",
        )


def _unequal(message: str, key: str, found: Any, wanted: Any) -> Iterator[Fault]:
    if found != wanted:
        yield Fault(message, where=key, found=str(found), expected=str(wanted))


def _difference(found: str | None, wanted: str | None) -> str:
    if found is None or wanted is None:
        return "none" if found is None else f"{len(found.encode())} bytes"
    same = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
    )
    return f"{len(found.encode())} bytes, other from character {same}: {found[same : same + 40]!r}"


# -------------------------------------------------------------------------------------------- what llama.cpp says


def token_faults(model: Model, key: str, expected: Expected) -> Iterator[Fault]:
    """Every fault of the vocabulary that shows without weights."""
    if model.tokens < expected.tokens:
        yield Fault(
            "the vocabulary lacks tokens of the tokenizer",
            where=key,
            found=str(model.tokens),
            expected=f"at least {expected.tokens}",
        )
    adds_bos = model.adds_bos and model.bos == expected.bos_token_id
    message = "whether texts begin with the BOS token differs from the trained tokenizer"
    yield from _unequal(message, key, adds_bos, expected.adds_bos)
    if model.chat_template != expected.chat_template:
        yield Fault(
            "llama.cpp reads another chat template",
            where=key,
            found=_difference(model.chat_template, expected.chat_template),
            expected="the trained one",
        )
    eos = expected.eos_token_id
    if eos is not None and eos < model.tokens and not model.ends(eos):
        yield Fault(
            "llama.cpp does not stop at the EOS token",
            where=key,
            found=f"token {eos} does not end a generation",
            expected="an end token",
        )


def text_faults(model: Model, key: str, texts: list[Tokenised]) -> Iterator[Fault]:
    """Texts must become the trained tokenizer's ids, and ids its text."""
    split, joined = [], []
    for number, text in enumerate(texts):
        found = model.tokenise(text.text)
        if found != text.ids:
            at = next(
                (i for i, (a, b) in enumerate(zip(found, text.ids, strict=False)) if a != b),
                min(len(found), len(text.ids)),
            )
            split.append((f"text {number} from token {at}: {found[at : at + 5]}", str(text.ids[at : at + 5])))
        spoken = model.detokenise(text.ids)
        if spoken.strip() != text.decoded.strip():  # a leading space belongs to the first word in some vocabularies
            joined.append((f"text {number}: {spoken[:60]!r}", f"{text.decoded[:60]!r}"))
    for message, wrong in (
        ("texts become other tokens than in training", split),
        ("tokens become another text than in training", joined),
    ):
        if wrong:
            found_, wanted = zip(*wrong[:SHOWN], strict=True)
            yield Fault(
                f"{len(wrong)} of {len(texts)} {message}",
                where=key,
                found="; ".join(found_),
                expected="; ".join(wanted),
            )


def quality_faults(quality: Quality, known: Reference, key: str, limits: dict[str, float]) -> Iterator[Fault]:
    """Limits that do not hold; also where the figure is not a number."""
    if not quality.kl <= limits["max_kl"]:
        yield Fault(
            "it strays too far from the 16-bit model",
            where=key,
            found=f"KL {quality.kl:.4g} nats a token",
            expected=f"at most {limits['max_kl']:g}",
        )
    if not quality.perplexity_rise <= limits["max_perplexity_rise"]:
        found = f"perplexity {quality.perplexity:.5g} against {quality.reference_perplexity:.5g}, {quality.perplexity_rise:+.2%}"  # noqa: E501
        yield Fault(
            "its perplexity is too high",
            where=key,
            found=found,
            expected=f"at most +{limits['max_perplexity_rise']:.2%}",
        )
    if known.stopped and not quality.stopped:
        found = f"{quality.answer_tokens} tokens without an end"
        yield Fault(
            "its answer does not stop at an end token",
            where=key,
            found=found,
            expected=f"an end within {known.answer_limit} tokens",
        )
