"""Another model says which answer of each pair is better, the base's or the tuned one's: twice, their places exchanged.

What depends on the place is not a verdict. Every answer is kept in a file, by what was asked: a rerun asks for nothing
that is there.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from job.errors import InputError, JobError
from job.evaluation.judge_endpoint import POINTER, Budget, DeclinedError, Endpoint, SpentError, silent
from job.evaluation.judge_words import FIRST, SECOND, TIE, TRY, Messages, messages, verdict
from job.evaluation.metrics.judge import EVEN
from job.evaluation.metrics.record import DIGITS, Counts
from job.host.streams import harmless
from job.spec.sections import JudgeSpec

BASE, TRAINED, NEITHER = "base", "trained", "neither"
SWAYED, UNREAD, DECLINED, UNASKED = "swayed", "unread", "declined", "unasked"
EQUAL = "equal"
COUNTED = {TRAINED: 1.0, BASE: 0.0, NEITHER: EVEN, SWAYED: EVEN, EQUAL: EVEN}
AT_ONCE = 4
KEPT_AFTER = 2 * AT_ONCE  # answers
TRY_TOKENS = 16


@dataclass(frozen=True)
class AnswerPair:
    """A question, what a good answer would be where that is known, and two answers."""

    question: str
    reference: str | None
    base: str
    trained: str


@dataclass(frozen=True)
class Ruling:
    """One answer of the judge, as it is kept. `id`: of what was asked; equal questions of several pairs share it, so
    that `pair` and `first` are those of one of them. `why_not`: it was declined.
    """

    id: str
    pair: int
    first: str  # whose answer stood first
    said: str
    tokens: int
    model: str
    why_not: str = ""


class KeptRulings:
    """What the judge has answered: lines of a file, in which nothing is a secret once `redact` has seen it."""

    def __init__(
        self, path: Path, earlier: bytes, redact: Callable[[str], str], store: Callable[[Path], object]
    ) -> None:
        self._path, self._redact, self._store = path, redact, store
        self.rulings: dict[str, Ruling] = {}
        self._lines: dict[str, str] = {}
        self._add(_read(earlier))
        self.earlier = len(self.rulings)

    def keep(self, rulings: Sequence[Ruling]) -> None:
        if not rulings:
            return
        self._add(rulings)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(self._lines.values()), "utf-8")
        self._store(self._path)

    def _add(self, rulings: Iterable[Ruling]) -> None:
        for ruling in rulings:
            line = json.dumps(asdict(ruling), ensure_ascii=False)
            self._lines[ruling.id] = f"{harmless(self._redact(line))}\n"
            self.rulings[ruling.id] = ruling


def _read(raw: bytes) -> Iterator[Ruling]:
    """Lines of an earlier try; one that is damaged is asked again."""
    for line in raw.decode("utf-8", "replace").split("\n"):
        try:
            found = Ruling(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if [type(value) for value in asdict(found).values()] == [str, int, str, str, int, str, str]:
            yield found


@dataclass(frozen=True)
class JudgeQuestion:
    """One of the two questions about a pair."""

    id: str
    pair: int
    first: str
    messages: Messages


def require_judge(spec: JudgeSpec) -> None:
    """Asks for a word, before anything is paid for. Raises `InputError` where nothing can come of it."""
    endpoint = Endpoint(spec.model, Budget(spec.max_requests, spec.max_tokens))
    try:
        endpoint.ask([{"role": "user", "content": TRY}], min(TRY_TOKENS, spec.max_answer_tokens))
    except DeclinedError as error:
        raise InputError("the judge declines what it is asked", where=POINTER, found=str(error)) from error
    except SpentError:
        return  # so little may be asked that this would be too much
    finally:
        endpoint.close()


def judge(
    spec: JudgeSpec, pairs: Sequence[AnswerPair], seed: int, memory: KeptRulings, progress: Callable[[int, int], object]
) -> tuple[list[Counts | None], dict[str, Any]]:
    """What each pair adds to the win rate, None where it says nothing; and how it went, for the statistics.

    Pairs come in a random order, so that those for which a cap left nothing are as any others: equal ones after these
    count as little. `progress` is given how many of how many questions are answered.

    Raises `InputError` and `TransientError`, once what was answered is kept.
    """
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)  # noqa: S311 - the same each time
    asked = [
        question
        for number in order
        if pairs[number].base.strip() != pairs[number].trained.strip()
        for question in _questions(spec, number, pairs[number])
    ]
    known = [ruling.tokens for ruling in memory.rulings.values()]
    budget = Budget(spec.max_requests, spec.max_tokens, len(known), sum(known))
    endpoint = Endpoint(spec.model, budget)
    try:
        new = {one.id: one for one in asked if one.id not in memory.rulings}
        _ask_all(endpoint, spec, list(new.values()), memory, progress)
    finally:
        endpoint.close()
    both = {
        before.pair: (memory.rulings.get(before.id), memory.rulings.get(after.id))
        for before, after in zip(asked[::2], asked[1::2], strict=True)
    }
    found = _outcomes(order, both)
    facts = _facts(found, both)
    facts |= {"endpoint": endpoint.name, "model": spec.model, "requests": budget.requests, "tokens": budget.tokens}
    facts |= {"remembered": memory.earlier, "min_agreement": spec.min_agreement}
    believed = facts["agreement"] is None or facts["agreement"] >= spec.min_agreement
    counts: list[Counts | None] = [
        (COUNTED[outcome], 1.0) if believed and outcome in COUNTED else None for outcome in found
    ]
    return counts, facts


def _questions(spec: JudgeSpec, number: int, pair: AnswerPair) -> Iterator[JudgeQuestion]:
    for first, answers in ((BASE, (pair.base, pair.trained)), (TRAINED, (pair.trained, pair.base))):
        chat = messages(spec.rubric, pair.question, pair.reference, *answers)
        whole = json.dumps([spec.model, spec.max_answer_tokens, chat]).encode()
        yield JudgeQuestion(hashlib.sha256(whole).hexdigest(), number, first, chat)


def _ask_all(
    endpoint: Endpoint,
    spec: JudgeSpec,
    asked: Sequence[JudgeQuestion],
    memory: KeptRulings,
    progress: Callable[[int, int], object],
) -> None:
    """A few at once, until all are answered or no more may be asked."""

    def ask(one: JudgeQuestion) -> Ruling | Exception:
        try:
            said = endpoint.ask(one.messages, spec.max_answer_tokens)
        except DeclinedError as error:
            return Ruling(one.id, one.pair, one.first, "", 0, "", str(error))
        except (SpentError, JobError) as error:  # is raised once the others are kept
            return error
        return Ruling(one.id, one.pair, one.first, said.text, said.tokens, said.model)

    pool = ThreadPoolExecutor(AT_ONCE, "judge")
    try:
        for start in range(0, len(asked), KEPT_AFTER):
            answers = list(pool.map(ask, asked[start : start + KEPT_AFTER]))
            memory.keep([answer for answer in answers if isinstance(answer, Ruling)])
            failed = [answer for answer in answers if isinstance(answer, Exception)]
            if any(not isinstance(error, SpentError) for error in failed):
                raise next(error for error in failed if not isinstance(error, SpentError))
            if failed:
                if failed[0].args and not memory.rulings:  # the cap went for nothing
                    raise silent(str(failed[0]))
                return
            progress(start + len(answers), len(asked))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


Both = tuple[Ruling | None, Ruling | None]  # about a pair, the base's answer first and the trained model's


def _outcomes(order: Sequence[int], both: Mapping[int, Both]) -> list[str]:
    """Of each pair; `order` is that in which they come. A pair of which nothing was to be asked is equal."""
    found = [_outcome(*both[number]) if number in both else EQUAL for number in range(len(order))]
    begun = [found[number] for number in order]
    for number in order[begun.index(UNASKED) if UNASKED in begun else len(order) :]:
        found[number] = UNASKED if found[number] == EQUAL else found[number]
    return found


def _outcome(base_first: Ruling | None, trained_first: Ruling | None) -> str:
    if base_first is None or trained_first is None:
        return UNASKED
    if base_first.why_not or trained_first.why_not:
        return DECLINED
    won = (
        {FIRST: BASE, SECOND: TRAINED, TIE: NEITHER}.get(verdict(base_first.said) or ""),
        {FIRST: TRAINED, SECOND: BASE, TIE: NEITHER}.get(verdict(trained_first.said) or ""),
    )
    if won[0] is None or won[1] is None:
        return UNREAD
    return won[0] if won[0] == won[1] else SWAYED


def _facts(found: Sequence[str], both: Mapping[int, Both]) -> dict[str, Any]:
    """How many pairs came out how; of the swayed ones, in how many the first or the second place won both times."""
    count = Counter(found)
    alike = count[TRAINED] + count[BASE] + count[NEITHER]
    asked = alike + count[SWAYED] + count[UNREAD] + count[DECLINED]
    swayed = [
        {verdict(one.said) for one in both[number] if one} for number, outcome in enumerate(found) if outcome == SWAYED
    ]
    return {
        "pairs": len(found), "equal": count[EQUAL],
        "better": count[TRAINED], "worse": count[BASE], "even": count[NEITHER], "swayed": count[SWAYED],
        "first_place": swayed.count({FIRST}), "second_place": swayed.count({SECOND}),
        "unread": count[UNREAD], "declined": count[DECLINED], "unasked": count[UNASKED],
        "agreement": round(alike / asked, DIGITS) if asked else None,
        "answered_by": sorted({one.model for known in both.values() for one in known if one and one.model}),
    }  # fmt: skip
