"""What everything that is delivered knows, measured on the same rows as the model as it was trained, and whether the
spec's gates hold for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.context import Run
from job.evaluation.gates import check_gates, judged
from job.evaluation.generate import spoken
from job.evaluation.metrics import metric_of
from job.evaluation.metrics.losses import TRAIN_LOSS
from job.evaluation.metrics.record import DIGITS
from job.evaluation.scores import Figures, Wanted, answer_rows, figures, loss_rows
from job.export.reference import Measure
from job.export.rows import Compared, asked_questions, check_prompt, compared_rows
from job.gguf.quality import Step
from job.ledger.receipts import MERGED_ONTO
from job.plan.steps import Sizes

if TYPE_CHECKING:
    from job.data.build import Prepared, Question
    from job.evaluation.assess import Assessment

BASE, TRAINED_MODEL = "base", "trained"  # beside the names of exports


@dataclass(frozen=True)
class Delivered:
    """The measure of a run: its compared rows and questions, and what was found so far (in its statistics)."""

    run: Run
    prepared: Prepared
    compared: Compared

    @classmethod
    def of(cls, run: Run, prepared: Prepared) -> Delivered:
        """With nothing found yet."""
        rows = compared_rows(prepared, run.spec.export.check_tokens, run.spec.training.seed)
        run.stats.delivered = {"rows": rows.document(), MERGED_ONTO: None, "artefacts": {}}
        return cls(run, prepared, rows)

    def measure(self) -> Measure:
        """What a child process measures a model on."""
        return Measure(
            rows=self.compared.ids,
            learned=self.compared.learned,
            prompt=check_prompt(self.prepared),
            questions=[question.input_ids for question in self.questions()],
            pad=self.prepared.tokenizer.pad_token_id,
            stop_token_ids=self.prepared.report.stop_token_ids,
            max_new_tokens=self.run.spec.evaluation.max_new_tokens,
        )

    def questions(self, known: bool = True) -> list[Question]:
        """The spec's first prompts and, if wanted, questions whose answer is `known`."""
        prompts, rows = asked_questions(self.prepared)
        return [*prompts, *(rows if known else [])]

    def sizes(self) -> Sizes:
        """What the exports' memory is planned by."""
        compared, most = self.compared, self.run.spec.evaluation.max_new_tokens
        asked = [len(question.input_ids) + most for question in self.questions()]
        rows = max(map(len, compared.ids))
        return Sizes(compared.tokens, len(compared.learned), rows, max(asked, default=0), sum(asked))

    def texts(self, ids: list[list[int]]) -> list[str | None]:
        stops = self.prepared.report.stop_token_ids
        return list(spoken(self.prepared.tokenizer, ids, stops)) if ids else []

    def figures(self, measured: Step, texts: Sequence[str | None]) -> Figures:
        """Of an artefact: the spec's metrics, of what was `measured` and of the answers' `texts`, and the `step`."""
        prompts, questions = asked_questions(self.prepared)
        step = {"kl": measured.kl, "same_top_token": measured.same_top_token}
        known = {name: value for name, value in step.items() if value is not None}
        if not self.compared.held_out:
            return {TRAIN_LOSS: round(measured.loss, DIGITS)} | known
        answered = set(range(len(questions))) - set(self.run.stats.delivered["rows"].get("unanswered", []))
        said = [text or "" if number in answered else None for number, text in enumerate(texts[len(prompts) :])]
        wanted = Wanted.of(self.run.spec.evaluation)
        rows = answer_rows(wanted, said, questions[: len(said)])
        return figures(loss_rows([(measured.loss, 1.0)]) | rows) | known

    def beside(self, found: Assessment, loss: float) -> Figures:
        """Those figures of a whole model in training, from its assessment and its loss on the compared rows."""
        general = figures({name: counts for name, counts in found.rows.items() if metric_of(name).of_general})
        if not self.compared.held_out:
            return {TRAIN_LOSS: round(loss, DIGITS)} | general
        _, questions = asked_questions(self.prepared)
        rows = {name: counts[: len(questions)] for name, counts in found.rows.items() if metric_of(name).needs_rows}
        if self.compared.whole:
            rows |= {name: counts for name, counts in found.rows.items() if metric_of(name).of_margin is not None}
        return figures(loss_rows([(loss, 1.0)]) | rows) | general

    def note(self, name: str, figures: Figures) -> None:
        self.run.stats.delivered["artefacts"][name] = figures

    def require(self, name: str, figures: Figures) -> None:
        """Raises `GateError` for each gate of the spec that is to hold for `name`, and does not."""
        everywhere, here = self.run.stats.evaluation, self.run.stats.delivered["artefacts"][TRAINED_MODEL]
        found = judged(everywhere[TRAINED_MODEL], here, figures)
        check_gates(self.run.spec.evaluation.gates, name, everywhere[BASE], found)
