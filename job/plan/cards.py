"""GPUs that trainings are rented or bought for, by the names that `--price` takes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

GB = 10**9
FP8_CAPABILITY = "8.9"  # of an NVIDIA GPU, and later
NEAR = 0.15  # of its memory: drivers say somewhat more or less than the name


@dataclass(frozen=True)
class Card:
    """`gb`: memory in 10^9 bytes, as cards are named. `tflops`: the maker's figure for dense 16-bit products that add
    up in fp32, `gb_a_second` that for reading its memory, in 10^9 bytes. `measured`: whether the times of the plan were
    fitted to this card. `fp8`: whether it multiplies numbers of 8 bits.
    """

    name: str
    gb: int
    tflops: float
    gb_a_second: float
    measured: bool = False
    fp8: bool = False

    @property
    def bytes(self) -> int:
        return self.gb * GB


CARDS = {
    "t4": Card("T4", 16, 65, 320),
    "l4": Card("L4", 24, 121, 300, fp8=True),
    "a10": Card("A10", 24, 125, 600),
    "rtx3090": Card("RTX 3090", 24, 71, 936),
    "rtx4090": Card("RTX 4090", 24, 165, 1008, fp8=True),
    "rtx5090": Card("RTX 5090", 32, 210, 1792, fp8=True),
    "a100-40": Card("A100 40", 40, 312, 1555),
    "l40s": Card("L40S", 48, 362, 864, fp8=True),
    "a100-80": Card("A100 80", 80, 312, 2039),
    "h100": Card("H100", 80, 989, 3350, fp8=True),
    "h200": Card("H200", 141, 989, 4800, measured=True, fp8=True),
}


def card_of_device(name: str, memory_bytes: int) -> Card:
    """The one that the driver calls `name`; where it is none of these, the one of the most like memory."""
    return min(_called(name) or CARDS.values(), key=lambda card: abs(card.bytes - memory_bytes))


def card_of(name: str, memory_bytes: int) -> str | None:
    """The key of the card that a driver calls `name`, such as "NVIDIA A100-SXM4-80GB"; None for one of no plan."""
    named = _called(name)
    return next((k for k, c in CARDS.items() if c in named and abs(memory_bytes - c.bytes) <= NEAR * c.bytes), None)


def _called(name: str) -> list[Card]:
    """One of several memories may be several cards."""
    words = name.upper().replace("-", " ").split()
    said = {*words, *(word.rstrip("G") for word in words), *map("".join, itertools.pairwise(words))}
    return [card for key, card in CARDS.items() if key.partition("-")[0].upper() in said]
