"""Group relative policy optimisation: of several answers that the model gives to a prompt, those that are worth more
than the others become likelier. What an answer is worth is measured (`rewards.py`); no answer is given to learn from.

Rows are prompts with a reference, in the form of a conversation with that answer; its tokens are not learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from job.errors import InputError
from job.evaluation.judge_endpoint import address
from job.evaluation.judge_scores import Answer, Scorer
from job.training.methods.padding import padded_apart
from job.training.methods.pairs import NOT_LEARNED, require_settings
from job.training.methods.record import TOKENS, Method
from job.training.methods.reference_model import require_the_base, without_copies
from job.training.methods.rewards import FILE, JUDGE, REWARDS, reward_of, scorer_of
from job.training.methods.vllm_answers import DIFFERENCE, answer_as_the_engine, answer_settings, give_back, threads_kept

CURVES = {
    "reward": "reward",
    "reward_std": "reward_deviation",
    "frac_reward_zero_std": "alike_groups",
    "completions/mean_length": "answer_tokens",
    "completions/clipped_ratio": "cut_answers",
    "entropy": "entropy",
    "kl": "kl",
    **DIFFERENCE,
} | {f"rewards/{name}/mean": f"reward_{name}" for name in REWARDS}
PART = 10  # of the steps: what the reward is at the beginning and at the end
RISE = 0.01  # of the reward, below which it has not risen
ALIKE = 0.9  # of the groups
SHOWN_CHARACTERS = 120


def _own_trainer(trainer_class: type) -> type:
    class Trainer(without_copies(trainer_class)):  # type: ignore[misc]
        """Prompts are tokens already; an answer ends with any of the `stops`, and has none of the `unsaid` tokens."""

        def __init__(self, stops: list[int], unsaid: list[int], **given: Any) -> None:
            with threads_kept():
                super().__init__(**given)
            self.eos_token_ids = stops
            if self.use_vllm:
                answer_as_the_engine(self, stops)
                return
            settings = {"eos_token_id": stops} | ({"suppress_tokens": unsaid} if unsaid else {})
            self.generation_config.update(**settings)
            self.generation_kwargs |= settings

        def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return prompts, None, {}

    return Trainer


def _arguments(spec: Any) -> dict[str, Any]:
    options = spec.training.grpo
    return {
        "num_generations": options.group_size,
        "max_completion_length": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "beta": options.beta,
        "epsilon": options.epsilon,
        "epsilon_high": options.epsilon_high,
        "delta": None,
        "loss_type": options.loss_type,
        "scale_rewards": options.scale_rewards,
        "reward_weights": [reward.weight for reward in options.rewards],
        "num_iterations": 1,
        "steps_per_generation": None,  # one step
        "importance_sampling_level": "token",
        "mask_truncated_completions": options.mask_cut_answers,
        "shuffle_dataset": False,  # the data stage has shuffled
        "disable_dropout": not spec.lora.dropout,
        "sync_ref_model": False,
        "log_completions": False,
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
    } | answer_settings(spec)


def _further(spec: Any, prepared: Any) -> dict[str, Any]:
    """Of the trainer: rows in its form, and what answers are worth."""
    from datasets import Dataset

    training = spec.training
    prompts = training.batch_size * training.gradient_accumulation_steps // training.grpo.group_size
    tokenizer, stops = prepared.tokenizer, list(prepared.report.stop_token_ids)
    rows = [
        {"prompt": prompt, "reference": text, "question": tokenizer.decode(prompt, skip_special_tokens=True).strip()}
        for prompt, text in _questions(prepared)
    ]
    by_id = spec.model.backend == "unsloth"
    if by_id:
        tokenizer = padded_apart(tokenizer, {*stops, *(token for row in rows for token in row["prompt"])})
    entries = enumerate(spec.training.grpo.rewards)
    return {
        "train_dataset": Dataset.from_list(whole_steps(rows, prompts)),
        "reward_funcs": [_function(reward, f"/training/grpo/rewards/{number}") for number, reward in entries],
        "processing_class": tokenizer,
        "stops": stops,
        "unsaid": [tokenizer.pad_token_id] if by_id else [],
    }


def whole_steps(rows: list[dict[str, Any]], prompts: int) -> list[dict[str, Any]]:
    """In steps of so many `prompts`; the first rows fill the last step, which trl would leave out."""
    return rows + [rows[number % len(rows)] for number in range(-len(rows) % prompts)]


def _questions(prepared: Any) -> Iterator[tuple[list[int], str]]:
    """Ids of each prompt, and the reference."""
    for row in prepared.train:
        learned = [token for token in row["labels"] if token != NOT_LEARNED]
        begin = next(place for place, token in enumerate(row["labels"]) if token != NOT_LEARNED)
        yield list(row["input_ids"][:begin]), prepared.tokenizer.decode(learned, skip_special_tokens=True).strip()


def _function(asked: Any, pointer: str) -> Any:
    """In the form that trl calls, by the name of its metric."""
    of = None if asked.metric == JUDGE else reward_of(asked, pointer)

    def score(completions: list[str], question: list[str], reference: list[str], **_: Any) -> list[float | None]:
        said = [answer.strip() for answer in completions]
        if of:
            return [of(answer, wanted) for answer, wanted in zip(said, reference, strict=True)]
        return _scorer(asked, pointer).scores(list(map(Answer, question, reference, said)))

    score.__name__ = asked.metric
    return score


def _scorer(asked: Any, pointer: str) -> Scorer:
    return scorer_of(asked.judge, f"{pointer}/judge", address())


def _look(spec: Any, prepared: Any, asks: bool) -> None:
    """Raises `InputError` for a prompt beside which there is no room for an answer, a reference that was cut, or a
    reward that counts for no reference, and, where it `asks`, as `own_reward` and `Scorer.scores` do; what counts for
    some is noted.
    """
    questions = list(_questions(prepared))
    prepared.report.notes.extend(_unfit(spec, [reference for _, reference in questions], asks))
    most = spec.model.max_seq_length - spec.training.grpo.max_new_tokens
    longest = max(len(prompt) for prompt, _ in questions)
    cut = prepared.report.train["truncated_rows"]
    if longest > most or cut:
        found = f"{cut} references cut" if cut else f"a prompt of {longest} tokens"
        raise InputError(
            "prompts leave no room for the answers",
            where="/model/max_seq_length",
            found=found,
            expected=f"prompts of at most {most} tokens, whole references",
            hint="Raise model.max_seq_length, lower training.grpo.max_new_tokens, or leave long rows out",
        )


def _unfit(spec: Any, references: list[str], asks: bool) -> Iterator[str]:
    """For people, of each reward: how many references it does not count for. Raises `InputError` where that is all."""
    for number, asked in enumerate(spec.training.grpo.rewards):
        pointer = f"/training/grpo/rewards/{number}"
        if asked.metric == JUDGE:  # whether it answers shows before the weights are fetched, too
            if asks:
                _scorer(asked, pointer).scores([Answer("", references[0], references[0])])
            if (most := _most_answers(spec, len(references))) > (cap := asked.judge.max_requests):
                yield (f"up to {most} answers are given, and the judge may be asked {cap} times: equal ones are asked "
                       "about once, and the run ends where that is reached")  # fmt: skip
            continue
        if asked.metric == FILE:  # a mistake in it shows before the weights are fetched
            if asks:
                reward_of(asked, pointer)(references[0], references[0])
            continue
        of = reward_of(asked, pointer)
        unfit = [text for text in references if of(text, text) is None]
        if len(unfit) == len(references):
            raise InputError(f"no reference counts for the reward {asked.metric}", where=pointer,
                             found=f"{unfit[0][:SHOWN_CHARACTERS]!a}, for one")  # fmt: skip
        if unfit:
            yield (f"{len(unfit)} of {len(references)} references do not count for the reward {asked.metric}: "
                   "answers to their prompts get nothing by it")  # fmt: skip


def _most_answers(spec: Any, prompts: int) -> int:
    """That a training gives."""
    training = spec.training
    step: int = training.batch_size * training.gradient_accumulation_steps
    epoch = math.ceil(prompts * training.grpo.group_size / step)
    steps: int = training.max_steps or math.ceil((training.epochs or 1) * epoch)
    return step * steps


def _check(trainer: Any, spec: Any) -> None:
    options = spec.training.grpo
    found = {
        "beta": trainer.beta,
        "epsilon": trainer.epsilon_low,
        "temperature": trainer.temperature,
        "loss_type": trainer.loss_type,
        "group_size": trainer.num_generations,
        "max_new_tokens": trainer.max_completion_length,
        "scale_rewards": trainer.scale_rewards,
    }
    require_settings("grpo", found, {name: getattr(options, name) for name in found})
    if options.beta:
        require_the_base(trainer)


def _remarks(spec: Any, history: Sequence[Mapping[str, float]]) -> list[str]:
    """What a person should know of the rewards: what a judge was asked, that they have not risen, or that answers of a
    group are worth the same.
    """
    rewards = [line["reward"] for line in history if "reward" in line]
    if not rewards:
        return []
    count = max(1, len(rewards) // PART)
    first, last = (sum(part) / count for part in (rewards[:count], rewards[-count:]))
    entries, end = enumerate(spec.training.grpo.rewards), history[-count:]
    said = [_scorer(asked, f"/training/grpo/rewards/{number}").note() for number, asked in entries if asked.judge]
    if last < first - RISE:
        said.append(f"the reward has fallen, from {first:.3g} to {last:.3g}: lower the learning rate, or raise beta")
    elif last < first + RISE:
        said.append(f"the reward has not risen ({first:.3g} at first, {last:.3g} at last): more steps, a higher "
                    "learning rate, or easier prompts")  # fmt: skip
    alike = sum(line.get("alike_groups", 0.0) for line in end) / len(end)
    if alike > ALIKE and last < first + RISE:
        said.append(f"in {100 * alike:.0f} % of the last groups all answers were worth the same, and nothing is "
                    "learned of them: raise group_size or temperature, or take rewards that tell more")  # fmt: skip
    cut = sum(line.get("cut_answers", 0.0) for line in end) / len(end)
    if cut > 1 / 2:
        said.append(f"{100 * cut:.0f} % of the last answers were cut: raise training.grpo.max_new_tokens")
    return said


GRPO = Method(
    name="grpo",
    title="group relative policy optimisation (GRPO)",
    formats=("prompt_only",),
    columns=TOKENS,
    trl_name="GRPO",
    own_trainer=_own_trainer,
    arguments=_arguments,
    check=_check,
    further=_further,
    look=_look,
    remarks=_remarks,
    end=give_back,
    may_begin_anew=lambda spec: not spec.training.grpo.use_vllm,  # vLLM holds its memory until its process ends
    answers=lambda spec: spec.training.grpo.group_size,
    curves=CURVES,
    learning_rate=1e-5,
    needs_adapter=True,
    learns_answers=False,
    further_passes=1,  # of the reference; answers are given besides
)
