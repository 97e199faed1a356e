"""What a spec says of the machine and of the training, chosen by the estimates of `job.plan`."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from typing import Any

from job.data.select import FEWEST, FRACTION, FROM_ROWS, MOST
from job.errors import CapacityError
from job.host.device import card_bytes, wanted_device
from job.host.memory import GIB
from job.plan.advice import VERY_SMALL
from job.plan.gpu_memory import least_card_bytes, least_words
from job.plan.model_size import model_size
from job.spec import JobSpec, parse_spec
from job.training.methods import METHODS

Json = dict[str, Any]

# Open weights under Apache-2.0, of a family that every part of a run knows.
SMALL_MODEL = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"
LARGER_MODEL = "hf://HuggingFaceTB/SmolLM2-1.7B-Instruct"
LARGER_FROM_BYTES = 8 * GIB
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
DOCUMENT_TOKENS = 2048  # documents are cut into pieces
PRECISIONS = ("16bit", "4bit")  # the most wanted first: 16 bits learn a little better, 4 bits leave room for long rows
EPOCHS = ((1000, 3), (5000, 2))  # below so many rows, so many passes
MOST_EPOCHS, FEWEST_STEPS, STEP_ROWS = 8, 100, 8  # a step has as many rows as a spec's default
QUICK_RATE = 0.001
QUICK_RATE_OF_PAIRS = 0.0001  # and of labels
ANSWER_STEP, MOST_ANSWERED, MOST_ON_CPU = 16, 128, 64  # tokens of an answer to a prompt
SOME_ROWS = 20  # of which a tenth can be spared


@dataclass(frozen=True)
class Device:
    """What will train: a card of so many bytes, or the CPU."""

    card_bytes: int | None
    words: str


def device_of(gpu_gib: float | None) -> Device:
    """The GPU that was named, else this machine's."""
    if gpu_gib is not None:
        return Device(int(gpu_gib * GIB), f"a GPU of {gpu_gib:g} GiB, as --gpu says")
    found = card_bytes() if wanted_device() != "cpu" else None
    if found:
        return Device(found, f"this machine's GPU of {found / GIB:.0f} GiB")
    return Device(None, "the CPU, as this machine has no GPU; --gpu GIB plans for one elsewhere")


def default_model(device: Device) -> tuple[str, str]:
    """A model where none is named, and why this one."""
    if device.card_bytes and device.card_bytes >= LARGER_FROM_BYTES:
        return LARGER_MODEL, "--model was not given: small, open (Apache-2.0), and fits this GPU"
    return SMALL_MODEL, "--model was not given: very small, open (Apache-2.0), and quick even without a large GPU"


def wanted_length(longest_tokens: int, documents: bool, positions: int | None) -> int:
    """The shortest of the usual lengths that holds the longest row, as far as the model reads."""
    longest = min(longest_tokens, DOCUMENT_TOKENS) if documents else longest_tokens
    usual = next((length for length in LENGTHS if length >= longest), LENGTHS[-1])
    return min(usual, positions or usual)


def settle(document: Json, device: Device, length: int, parameters: int | None) -> tuple[Json, str]:
    """`document` with precision, longest sequence and backend that the estimates say will fit, and why.

    Raises `CapacityError` where nothing fits.
    """
    if device.card_bytes is None:
        document["model"] |= {"precision": "16bit", "max_seq_length": length, "backend": "peft"}
        return document, "16bit with plain PEFT: a CPU gains nothing from 4-bit weights"
    shorter = [length, *(less for less in reversed(LENGTHS) if less < length)]
    needed = 0
    for tokens in shorter:
        for precision in PRECISIONS:
            tried = copy.deepcopy(document)
            tried["model"] |= {"precision": precision, "max_seq_length": tokens}
            spec = parsed(tried)
            size = model_size(spec, parameters)
            needed = least_card_bytes(spec, size)
            if (not size.quantised or precision == "4bit") and needed <= device.card_bytes:
                cut = f"; rows longer than {tokens} tokens are cut to fit" if tokens < length else ""
                least = f"least {needed / GIB:.1f} of {device.card_bytes / GIB:.3g} GiB"
                why = f"{least_words(tokens)}, for {size.parameters / 1e9:.2g} billion weights{cut}"
                return tried, f"{precision}: {least}, {why}; a run takes what is free to be quicker"
    raise CapacityError(
        "this model does not fit the GPU, even in 4 bits",
        where="--gpu",
        found=f"{device.card_bytes / GIB:.3g} GiB",
        expected=f"about {needed / GIB:.1f} GiB or more",
        hint="Name a smaller --model or a larger --gpu",
    )


def parsed(document: Json) -> JobSpec:
    return parse_spec(json.dumps(document).encode())


def epochs_for(rows: int) -> int:
    """More passes over few rows: with a handful of steps a model learns how answers look, and not what they say."""
    enough = math.ceil(FEWEST_STEPS * STEP_ROWS / rows)
    return max(min(enough, MOST_EPOCHS), next((passes for most, passes in EPOCHS if rows < most), 1))


def answers_for(device: Device, longest_learned: int | None) -> tuple[int, str]:
    """The value of `evaluation.max_new_tokens`, and why: an untuned base mostly goes on to there."""
    most = MOST_ANSWERED if device.card_bytes else MOST_ON_CPU
    if longest_learned is not None and longest_learned <= most:
        return -(-longest_learned // ANSWER_STEP) * ANSWER_STEP, "which holds the longest answer"
    return most, "as an untuned model often goes on and on" + ("" if device.card_bytes else ", slowly on a CPU")


def rate_for(document: Json, parameters: int | None) -> tuple[float, str] | None:
    """The learning rate for a very small model, and why; None for the usual one of the method."""
    spec = parsed(document)
    if (parameters or model_size(spec, None).parameters) >= VERY_SMALL:
        return None
    usual = spec.training
    rate = QUICK_RATE_OF_PAIRS if METHODS[usual.method].learning_rate else QUICK_RATE
    return rate, f"{rate:g}: so small a model learns little in few steps at the usual {usual.learning_rate:g}"


def held_out_for(rows: int, whole: bool) -> tuple[Any, str]:
    """The value of `data.held_out`, and why; `whole`: whether `rows` are all there are."""
    by_default = f"{FRACTION:.0%} of the rows (at least {FEWEST}, at most {MOST}), drawn by training.seed"
    if rows >= FROM_ROWS or not whole:
        return "auto", f"{by_default}; they are not trained on, and show what was learned"
    if rows >= SOME_ROWS:
        few = {"rows": rows // 10}
        return few, f"{rows // 10} rows; of so few, the figures are rough: 100 rows or more are better"
    return False, f"none of only {rows} rows: nothing will be measured on rows that are not trained on"
