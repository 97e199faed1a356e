"""What everything that is delivered knows, measured on the same rows as the model as it was trained, and whether the
spec's gates hold for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from job.context import Run
from job.data.build import Prepared, Question
from job.evaluation.assess import Assessment, ToMeasure
from job.evaluation.gates import check_gates, judged
from job.evaluation.generate import spoken
from job.evaluation.metrics import metric_of
from job.evaluation.metrics.losses import GENERAL_LOSS, HELD_OUT_LOSS, TRAIN_LOSS
from job.evaluation.metrics.record import DIGITS
from job.evaluation.metrics.task import NAME as TASK
from job.evaluation.readings import means, of_choices, of_rows
from job.evaluation.scores import (
    Figures,
    Rows,
    Wanted,
    answer_rows,
    choice_rows,
    figures,
    general_rows,
    loss_rows,
)
from job.export.reference_logits import Measure
from job.export.rows import Compared, asked_questions, check_prompt, compared_general, compared_rows
from job.gguf.quality import ModelStep
from job.gguf.readings import Reading
from job.ledger.receipts import MERGED_ONTO
from job.plan.steps import Sizes

BASE, TRAINED_MODEL = "base", "trained"  # beside the names of exports


class Losses(NamedTuple):
    """Of a whole model in training on what everything is measured on: compared rows and general ones, if there are any,
    nats a token.
    """

    compared: float
    general: float | None


@dataclass(frozen=True)
class Delivered:
    """The measure of a run: its compared rows, general ones and questions, and what was found so far (in its
    statistics).
    """

    run: Run
    prepared: Prepared
    compared: Compared
    general: Compared | None

    @classmethod
    def of(cls, run: Run, prepared: Prepared) -> Delivered:
        """With nothing found yet."""
        most, seed = run.spec.export.check_tokens, run.spec.training.seed
        rows, general = compared_rows(prepared, most, seed), compared_general(prepared, most, seed)
        run.stats.delivered = {"rows": rows.document(), MERGED_ONTO: None, "artefacts": {}}
        return cls(run, prepared, rows, general)

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
            readings=self.readings(),
        )

    def readings(self, choices: bool = True) -> list[Reading]:
        """The general rows and, if wanted, the `choices` of the first questions."""
        general = of_rows(self.general.rows) if self.general else []
        return general + (of_choices(self._chosen()) if choices else [])

    def _chosen(self) -> list[Question]:
        """Questions whose choices are compared."""
        return asked_questions(self.prepared)[1] if Wanted.of(self.run.spec.evaluation).choices else []

    def questions(self, known: bool = True) -> list[Question]:
        """The spec's first prompts and, if wanted, questions whose answer is `known`."""
        prompts, rows = asked_questions(self.prepared)
        return [*prompts, *(rows if known else [])]

    def sizes(self) -> Sizes:
        """What the exports' memory is planned by."""
        compared, most = self.compared, self.run.spec.evaluation.max_new_tokens
        asked = [len(question.input_ids) + most for question in self.questions()]
        rows = max(map(len, [*compared.ids, *(self.general.ids if self.general else [])]))
        longest = max([*asked, *(len(reading.ids) for reading in of_choices(self._chosen()))], default=0)
        return Sizes(compared.tokens, len(compared.learned), rows, longest, sum(asked))

    def texts(self, ids: list[list[int]]) -> list[str | None]:
        stops = self.prepared.report.stop_token_ids
        return list(spoken(self.prepared.tokenizer, ids, stops)) if ids else []

    def figures(
        self, measured: ModelStep, texts: Sequence[str | None], sums: Sequence[Sequence[float]] = ()
    ) -> Figures:
        """Of an artefact: the spec's metrics, from what a child has `measured`, the answers' `texts` and the `sums` of
        `readings`, and the step from the trained model.
        """
        prompts, questions = asked_questions(self.prepared)
        step = {"kl": measured.kl, "same_top_token": measured.same_top_token}
        known = figures(self._read(sums)) | {name: value for name, value in step.items() if value is not None}
        if not self.compared.held_out:
            return {TRAIN_LOSS: round(measured.loss, DIGITS)} | known
        answered = set(range(len(questions))) - set(self.run.stats.delivered["rows"].get("unanswered", []))
        said = [text or "" if number in answered else None for number, text in enumerate(texts[len(prompts) :])]
        wanted = Wanted.of(self.run.spec.evaluation)
        rows = answer_rows(wanted, said, questions[: len(said)])
        return figures(loss_rows([(measured.loss, 1.0)]) | rows) | known

    def _read(self, sums: Sequence[Sequence[float]]) -> dict[str, Rows]:
        """By metric, what was found of `readings`."""
        if not sums:
            return {}
        general = self.general.rows if self.general else []
        losses = [
            (-own[0], float(sum(map(len, reading.wanted))))
            for own, reading in zip(sums[: len(general)], of_rows(general), strict=True)
        ]
        rows = general_rows(losses) if losses else {}
        if len(sums) > len(general):
            likely = means(self._chosen(), sums[len(general) :])
            rows |= choice_rows(Wanted.of(self.run.spec.evaluation), likely, self._chosen())
        return rows

    def to_measure(self, pairs: bool) -> ToMeasure:
        """Of a whole model in training, beside what an assessment is of in any case."""
        compared, general = (
            None if rows is None or rows.whole else rows.rows for rows in (self.compared, self.general)
        )
        return ToMeasure(compared, general, pairs)

    def losses(self, found: Assessment) -> Losses:
        """Of a whole model in training: as measured, or its figures where these are of the same rows."""
        known, general = found.figures, found.general
        if self.general and self.general.whole:
            general = known[GENERAL_LOSS.name]
        compared = known[HELD_OUT_LOSS.name] if self.compared.whole else found.compared
        if compared is None:
            raise ValueError("the compared rows were not measured")
        return Losses(compared, general)

    def beside(self, found: Assessment, losses: Losses) -> Figures:
        """Those figures of a whole model in training, from its assessment and its losses on the compared rows."""
        others = {} if losses.general is None else figures(general_rows([(losses.general, 1.0)]))
        if any(task.merged for task in self.run.spec.evaluation.tasks or ()):
            others |= figures({name: counts for name, counts in found.rows.items() if TASK.fullmatch(name)})
        loss = losses.compared
        if not self.compared.held_out:
            return {TRAIN_LOSS: round(loss, DIGITS)} | others
        _, questions = asked_questions(self.prepared)
        rows = {name: counts[: len(questions)] for name, counts in found.rows.items() if metric_of(name).needs_rows}
        if self.compared.whole:
            rows |= {name: counts for name, counts in found.rows.items() if metric_of(name).of_margin is not None}
        return figures(loss_rows([(loss, 1.0)]) | rows) | others

    def note(self, name: str, figures: Figures) -> None:
        self.run.stats.delivered["artefacts"][name] = figures

    def require(self, name: str, figures: Figures) -> None:
        """Raises `GateError` for each gate of the spec that is to hold for `name`, and does not."""
        everywhere, here = self.run.stats.evaluation, self.run.stats.delivered["artefacts"][TRAINED_MODEL]
        found = judged(everywhere[TRAINED_MODEL], here, figures)
        check_gates(self.run.spec.evaluation.gates, name, everywhere[BASE], found)
