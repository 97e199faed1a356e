"""Another model says what single answers are worth, for trainings by reward: each is asked about once, within caps."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from job.errors import InputError
from job.evaluation.judge_endpoint import Budget, DeclinedError, Endpoint, SpentError, silent
from job.evaluation.judge_words import question_of_worth, worth

AT_ONCE = 8
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Answer:
    """To a question, with what a good one would be."""

    question: str
    reference: str
    text: str


class Scorer:
    """Asks one endpoint, and remembers what it has said. `asked`: a `ScoringSpec`, which is at `pointer`.

    Raises `InputError` where the environment names no endpoint.
    """

    def __init__(self, asked: Any, pointer: str) -> None:
        self._asked, self._pointer = asked, pointer
        self._budget = Budget(asked.max_requests, asked.max_tokens)
        self._endpoint = Endpoint(asked.model, self._budget, pointer)
        self._worth: dict[Answer, float | None] = {}

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """Of each answer, 0 to 1; None where the endpoint declined it or said no score.

        Raises `InputError` where it has said a score of none yet, and where a cap is reached; `TransientError` once it
        has failed too often.
        """
        said = self._ask([answer for answer in dict.fromkeys(answers) if answer not in self._worth])
        if said and not any(worth is not None for worth in self._worth.values()):
            raise InputError(
                "the judge says no score",
                where=self._pointer,
                found=ascii(said)[:SHOWN_CHARACTERS],
                expected="a last line SCORE: 7",
                hint="Take another model, or raise max_answer_tokens",
            )
        return [self._worth[answer] for answer in answers]

    def note(self) -> str:
        """What was asked, for people."""
        unread = sum(worth is None for worth in self._worth.values())
        text = f"the judge was asked what {len(self._worth)} answers are worth, with {self._budget.tokens} tokens"
        return f"{text}; for {unread} of them it said no score, and they got nothing by it" if unread else text

    def _ask(self, answers: Sequence[Answer]) -> str:
        """What it said last."""
        pool, said = ThreadPoolExecutor(AT_ONCE, "judge"), ""
        try:
            for answer, (found, words) in zip(answers, pool.map(self._one, answers), strict=True):
                self._worth[answer], said = found, words
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return said

    def _one(self, answer: Answer) -> tuple[float | None, str]:
        """What it is worth, and the judge's words."""
        chat = question_of_worth(self._asked.rubric, answer.question, answer.reference, answer.text)
        try:
            said = self._endpoint.ask(chat, self._asked.max_answer_tokens).text
        except DeclinedError as error:
            return None, str(error)
        except SpentError as error:
            if error.args and not self._worth:  # the cap went for nothing
                raise silent(str(error)) from error
            raise InputError(
                "the judge may not be asked more often",
                where=self._pointer,
                found=f"{self._budget.requests} requests, {self._budget.tokens} tokens",
                expected=f"at most {self._asked.max_requests} requests, {self._asked.max_tokens} tokens",
                hint="Raise max_requests or max_tokens, or take fewer steps or smaller groups",
            ) from error
        return worth(said), said
