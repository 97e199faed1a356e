"""On how few tokens does the test of a GGUF still tell a broken export from a sound one?

    python -m tests.export_power [TYPE…]

SmolLM2-135M is converted sound and with one fault after the other, each quantised to every type and measured token by
token against transformers. Then the compared rows are drawn `DRAWS` times for each number of tokens, as
`export.check_tokens` has them drawn. Prints a table for each type: the limit, the worst divergence of the sound file
over all draws, and of each fault the least, with the share of draws in which divergence or perplexity is beyond its
limit.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from job.export.rows import drawn
from job.gguf.convert import convert
from job.gguf.header import read_header
from job.gguf.native import CHUNK_TOKENS, opened
from job.gguf.quality import Reference, read_reference
from job.gguf.quantise import quantise
from job.gguf.types import TYPES
from job.host.cgroup import native_threads
from tests.ggufs import changed_folder, edit_json, write_reference
from tests.smollm2 import model_dir

TOKENS = (16, 24, 32, 48, 64, 128, 256)
KINDS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
DRAWS, ROWS = 50, 12
LAYER, WIDTH, HEADS, HEAD = 15, 576, 9, 64  # of SmolLM2's 30 layers, the one that is spoilt
PAGE = 1 << 20
SOUND = "sound"

Weights = dict[str, Any]
Token = tuple[float, float, float]  # of one token: divergence, loss here, loss of the reference


def name(part: str, layer: int = LAYER) -> str:
    return f"model.layers.{layer}.{part}.weight"


def transposed(weights: Weights) -> None:
    weights[name("self_attn.o_proj")] = weights[name("self_attn.o_proj")].T.contiguous()


def heads_swapped(weights: Weights) -> None:
    query = weights[name("self_attn.q_proj")].view(HEADS, HEAD, WIDTH)
    weights[name("self_attn.q_proj")] = query[[1, 0, *range(2, HEADS)]].reshape(WIDTH, WIDTH)


def rotary_halves_interleaved(weights: Weights) -> None:
    """As if the converter had not turned the rows of one query matrix."""
    query = weights[name("self_attn.q_proj")].view(HEADS, HEAD // 2, 2, WIDTH)
    weights[name("self_attn.q_proj")] = query.transpose(1, 2).reshape(WIDTH, WIDTH).contiguous()


def layers_exchanged(weights: Weights) -> None:
    for key in [key for key in weights if f".layers.{LAYER}." in key]:
        other = key.replace(f".{LAYER}.", f".{LAYER + 1}.")
        weights[key], weights[other] = weights[other], weights[key]


def layer_lost(weights: Weights) -> None:
    weights[name("mlp.down_proj")] = 0 * weights[name("mlp.down_proj")]


def scaled(weights: Weights) -> None:
    weights[name("mlp.down_proj")] = 2 * weights[name("mlp.down_proj")]


def norm_plus_one(weights: Weights) -> None:
    weights[name("input_layernorm")] = weights[name("input_layernorm")] + 1


SPOILT: Mapping[str, Callable[[Weights], None]] = {
    "one matrix transposed": transposed,
    "two heads of one layer exchanged": heads_swapped,
    "rotary halves of one matrix interleaved": rotary_halves_interleaved,
    "two layers exchanged": layers_exchanged,
    "one matrix all zeros": layer_lost,
    "one matrix doubled": scaled,
    "one norm off by one": norm_plus_one,
}


def spoil(folder: Path, change: Callable[[Weights], None]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    file.unlink()  # a link
    save_file(weights, file, {"format": "pt"})


def another_rope_base(folder: Path) -> None:
    edit_json(folder / "config.json", rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"})


def zeros(file: Path, target: Path, start: float, size: int) -> Path:
    """A copy with `size` bytes of nothing at this share of the weights, as a lost write leaves them."""
    shutil.copyfile(file, target)
    begin = read_header(file, file.name).data_start
    with target.open("r+b") as out:
        out.seek(begin + int(start * (file.stat().st_size - begin)))
        out.write(bytes(size))
    return target


def tokens_of(file: Path, known: Reference) -> list[list[Token]]:
    """Of each row, what each of its tokens but the last is found to be."""
    import torch

    found, offset = [], 0
    with opened(file, file.name) as model, model.context(known.context_tokens, native_threads()) as context:
        for row in known.rows:
            context.forget()
            parts = [context.evaluate(row[at : at + CHUNK_TOKENS], at) for at in range(0, len(row), CHUNK_TOKENS)]
            here = torch.cat([*map(torch.from_numpy, parts)])[:-1].log_softmax(-1)
            there = known.logits[offset : offset + len(row) - 1].float().log_softmax(-1)
            divergence = (there.exp() * (there - here)).sum(-1)
            following = torch.tensor(row[1:]).unsqueeze(1)
            losses = [-side.gather(1, following).squeeze(1) for side in (here, there)]
            found.append([*zip(*(values.tolist() for values in (divergence, *losses)), strict=True)])
            offset += len(row)
    return found


def draw(rows: list[list[Token]], tokens: int, seed: int) -> tuple[float, float]:
    """Divergence and rise of perplexity on so many tokens of rows as `seed` draws them."""
    picked = [token for number in drawn(len(rows), seed) for token in rows[number]][:tokens]
    divergence, here, there = (sum(values) / len(picked) for values in zip(*picked, strict=True))
    return divergence, math.expm1(here - there)


def table(kind: str, found: Mapping[str, list[list[Token]]]) -> None:
    limits = TYPES[kind]
    print(f"\n{kind}: KL at most {limits.max_kl:g}, perplexity at most +{limits.max_perplexity_rise:.0%}")
    print("| tokens |", *(f"{tokens} |" for tokens in TOKENS), flush=True)
    for fault, rows in found.items():
        cells = []
        for tokens in TOKENS:
            draws = [draw(rows, tokens, seed) for seed in range(DRAWS)]
            shown = (max if fault == SOUND else min)(kl for kl, _ in draws)
            refused = sum(kl > limits.max_kl or rise > limits.max_perplexity_rise for kl, rise in draws)
            cells.append(f"{shown:.3g}, {refused / DRAWS:.0%} |")
        print(f"| {fault} |", *cells, flush=True)


def main() -> None:
    kinds, threads = sys.argv[1:] or KINDS, native_threads()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        known = read_reference(write_reference(model_dir(), folder / "reference", ROWS))
        changes: dict[str, Callable[[Path], None]] = {SOUND: lambda _: None, "another rope base": another_rope_base}
        changes |= {fault: lambda at, change=change: spoil(at, change) for fault, change in SPOILT.items()}  # type: ignore[misc]
        found: dict[str, dict[str, list[list[Token]]]] = {kind: {} for kind in kinds}
        for number, (fault, change) in enumerate(changes.items()):
            model, whole = folder / f"model-{number}", folder / "bf16.gguf"
            convert(changed_folder(model_dir(), model, change), whole, "bf16", "spoilt", threads)
            for kind in kinds:
                quantise(whole, folder / "quant.gguf", kind, None, threads)
                found[kind][fault] = tokens_of(folder / "quant.gguf", known)
                if fault == SOUND:
                    for what, size in (("1 MiB lost", PAGE), ("8 MiB lost", 8 * PAGE)):
                        lost = zeros(folder / "quant.gguf", folder / "lost.gguf", 0.7, size)
                        found[kind][what] = tokens_of(lost, known)
            print(f"{fault}: measured", file=sys.stderr, flush=True)
        for kind in kinds:
            table(kind, found[kind])


if __name__ == "__main__":
    main()
