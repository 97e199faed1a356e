"""The acceptance test: every type is made and accepted on a model that fits it; figures mean what they say."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from job.errors import GateError
from job.gguf.check import Checked, check, quality_faults
from job.gguf.convert import convert
from job.gguf.header import read_header
from job.gguf.native import CHUNK_TOKENS, opened
from job.gguf.quality import ends_alike, measure, read_reference
from job.gguf.quantise import IMATRIX_ENTRIES, planned_types, quantise
from job.gguf.readings import Reading
from job.gguf.readings import log_sums as log_sums_of_llama
from job.gguf.types import TYPES
from tests.ggufs import NO_LIMITS, NOTHING_ASKED, against, describe, measure_imatrix, write_reference
from tests.tiny import wide_dir


class Parts:
    """A model's folder and everything that is made of it once."""

    def __init__(self, model: Path, folder: Path, rows: int) -> None:
        self.model, self.folder = model, folder
        self.sixteen = folder / "bf16.gguf"
        convert(model, self.sixteen, "bf16", "tuned", 1)
        self.reference = write_reference(model, folder / "reference", rows)
        self.imatrix = measure_imatrix(model, folder / "imatrix.gguf")
        self.expected = describe(model)
        self.accepted = cache(self._accepted)  # checked once, however many tests look at it

    def _accepted(self, name: str, with_imatrix: bool = False) -> Checked:
        return self.checked(
            name, {"max_kl": TYPES[name].max_kl, "max_perplexity_rise": TYPES[name].max_perplexity_rise}, with_imatrix
        )

    def checked(self, name: str, limits: dict[str, float], with_imatrix: bool = False) -> Checked:
        source = None if name == "bf16" else self.sixteen
        target = self.sixteen if source is None else self.folder / f"{name}-{with_imatrix}.gguf"
        if not target.exists():
            quantise(self.sixteen, target, name, self.imatrix if with_imatrix else None, 1)
        return check(target, f"gguf/{name}.gguf", name, source, self.expected, against(self.reference, limits))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(wide_dir(), tmp_path_factory.mktemp("wide"), rows=4)


# One of each kind for make test: of 16 bits, of blocks of 32 with and without an offset, the finest and the coarsest
# k-quant, a mixture, an i-quant with a table and one that needs an imatrix. test_everything.py has others; all of them
# are in make long.
SHORT = {"f16", "q8_0", "q5_1", "q6_k", "q4_k_m", "q2_k", "iq4_nl", "iq2_xxs"}


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in TYPES]
)
def test_every_type_is_made_and_accepted(wide: Parts, name: str) -> None:
    checked = wide.accepted(name, TYPES[name].needs_imatrix)
    assert checked.fallback_tensors == 0
    assert checked.file.tensors == 29
    assert TYPES[name].tensor_type in checked.file.types
    assert 0 <= checked.quality.kl + 1e-6 < TYPES[name].max_kl / 2
    assert checked.quality.stopped
    assert checked.quality.same_top_token > 0.9


def test_what_is_read_is_as_likely_as_transformers_finds_it(wide: Parts) -> None:
    """Across the chunks that llama.cpp is given."""
    from job.evaluation.readings import log_sums
    from job.export.logits import open_model

    long = [*range(300, 300 + CHUNK_TOKENS + 20)]
    last = len(long) - 1
    readings = [Reading(long, [[(3, 7), (last, 50)], [(last, 9)]]), Reading([5, 6], [[(1, 20)]])]
    with opened(wide.sixteen, "k") as gguf, gguf.context(2 * CHUNK_TOKENS, 1, None, "k") as context:
        found = log_sums_of_llama(context, readings)
    wanted = log_sums(open_model(wide.model, torch.float32, "cpu"), readings, 2, 2)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)


def test_finer_types_stray_less(wide: Parts) -> None:
    kl = [wide.accepted(name).quality.kl for name in ("q8_0", "q6_k", "q4_k_m", "q2_k")]
    assert kl == sorted(kl)
    assert kl[-1] > 20 * kl[0]


def test_an_imatrix_of_the_jobs_rows_helps(wide: Parts) -> None:
    without, measured = (wide.checked("iq3_s", NO_LIMITS, with_imatrix).quality for with_imatrix in (False, True))
    assert measured.perplexity <= without.perplexity
    assert measured.kl < 0.7 * without.kl
    assert read_header(wide.folder / "iq3_s-True.gguf", "k").metadata[IMATRIX_ENTRIES] == 21
    assert IMATRIX_ENTRIES not in read_header(wide.folder / "iq3_s-False.gguf", "k").metadata


def test_a_type_that_needs_an_imatrix_says_so(wide: Parts) -> None:
    words = (
        "iq2_xxs.gguf: llama.cpp cannot quantise to IQ2_XXS "
        "(found ERROR: this quantization requires an importance matrix!; "
    )
    with pytest.raises(GateError, match=re.escape(words)) as failure:
        quantise(wide.sixteen, wide.folder / "iq2_xxs.gguf", "iq2_xxs", None, 1)
    assert failure.value.exit_code == 14


def test_limits_are_those_that_were_asked_for(wide: Parts) -> None:
    kl = wide.accepted("q2_k").quality.kl
    with pytest.raises(GateError) as failure:
        wide.checked("q2_k", {"max_kl": kl / 2, "max_perplexity_rise": 10})
    (fault,) = failure.value.faults
    assert (fault.where, fault.found, fault.expected) == (
        "gguf/q2_k.gguf",
        f"KL {kl:.4g} nats a token",
        f"at most {kl / 2:g}",
    )
    with pytest.raises(GateError, match=r"its perplexity is too high .*expected at most \+-50.00%"):
        wide.checked("q2_k", {"max_kl": 10, "max_perplexity_rise": -0.5})


def test_the_plan_of_llama_cpp_is_what_it_writes(wide: Parts) -> None:
    quantise(wide.sixteen, wide.folder / "plan.gguf", "iq3_m", wide.imatrix, 1)
    written = {name: tensor.type for name, tensor in read_header(wide.folder / "plan.gguf", "k").tensors.items()}
    assert planned_types(wide.sixteen, "iq3_m", with_imatrix=True) == written
    assert len(set(written.values())) >= 4


def test_figures_are_those_of_torch(wide: Parts) -> None:
    """f32 in llama.cpp against the fp32 reference: no difference; the sums over it are perplexity as everyone's."""
    checked = wide.accepted("f32")
    known = read_reference(wide.reference)
    logits = known.logits[:].log_softmax(-1)
    losses, start = [], 0
    for row in known.rows:
        ids = torch.tensor(row[1:])
        losses.append(-logits[start : start + len(ids)].gather(1, ids[:, None]).squeeze(1))
        start += len(row)
    assert checked.quality.reference_perplexity == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-4)
    assert checked.quality.perplexity == pytest.approx(checked.quality.reference_perplexity, rel=1e-3)
    assert abs(checked.quality.kl) < 1e-4
    assert checked.quality.same_answer_tokens == checked.quality.answer_tokens == len(known.answer)


def test_an_answer_that_does_not_end_is_refused(wide: Parts) -> None:
    known = read_reference(wide.reference)
    with opened(wide.sixteen, "k") as model:
        quality = measure(model, known, known, NOTHING_ASKED, 1, None, "k")
    assert list(quality_faults(quality, known, "k", NO_LIMITS)) == []
    (fault,) = quality_faults(replace(quality, stopped=False, answer_tokens=known.answer_limit), known, "k", NO_LIMITS)
    assert fault.found == f"{2 * len(known.answer) + 16} tokens without an end"
    worse = quality_faults(replace(quality, kl=float("nan"), perplexity=float("inf")), known, "k", NO_LIMITS)
    assert [fault.message for fault in worse] == [
        "it strays too far from the 16-bit model",
        "its perplexity is too high",
    ]


def test_rows_longer_than_a_chunk_are_one_sequence(wide: Parts) -> None:
    """Logits do not depend on where a long row is cut into evaluations."""
    row = read_reference(wide.reference).rows[0]
    with opened(wide.sixteen, "k") as model, model.context(256, 1) as context:
        whole = context.evaluate(row, 0)
        context.forget()
        halves = [context.evaluate(row[:20], 0), context.evaluate(row[20:], 20)]
    assert abs(torch.cat([torch.from_numpy(half) for half in halves]) - torch.from_numpy(whole)).max() < 0.05


def test_what_sequences_begin_with_is_evaluated_once(wide: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the logits after them are those of a sequence that is evaluated from its beginning."""
    row = read_reference(wide.reference).rows[0]
    other = [*row[:12], *reversed(row[12:24])]
    evaluated: list[int] = []
    with opened(wide.sixteen, "k") as model, model.context(512, 1) as context:
        evaluate = context.evaluate
        monkeypatch.setattr(
            context, "evaluate", lambda ids, at, each=True: evaluated.append(len(ids)) or evaluate(ids, at, each)
        )
        asked = [row[:20], row[:21], other, row[:5], row[:5], [row[1]], row * (1 + 200 // len(row))]
        said = [context.after(ids) for ids in asked]
        assert evaluated == [20, 1, 24 - 12, 1, 1, 1, 128, len(asked[-1]) - 128]
        for ids, found in zip(asked, said, strict=True):
            context.forget()
            whole = [context.evaluate(ids[at : at + 128], at) for at in range(0, len(ids), 128)][-1][-1]
            assert abs(torch.from_numpy(found) - torch.from_numpy(whole)).max() < 0.05


def test_an_answer_that_took_another_turn_is_asked_at_the_place_where_the_reference_ends(wide: Parts) -> None:
    known = read_reference(wide.reference)
    with opened(wide.sixteen, "k") as model, model.context(known.context_tokens, 2) as context:
        assert ends_alike(context, model, known)
        assert not ends_alike(context, model, replace(known, answer=known.answer[:1])), "where an answer begins"
        assert not ends_alike(context, model, replace(known, stopped=False))
