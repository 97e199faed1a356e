"""What benchmarks ask of a model, before one is asked: documents, requests and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.evaluation.benchmarks import SEED, Benchmark
from job.evaluation.task_faults import fit
from job.spec import TaskSpec

SAMPLED = 20  # documents of a task whose prompts are built; the others are taken to be like these
LENGTHS = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # how a task says at most how many tokens it wants
USUAL_LENGTH = 256  # of an answer where it does not, as lm-eval has it


@dataclass(frozen=True)
class TaskRequests:
    """Of one model. `readings` are texts whose likelihood is wanted, of `read_tokens` in all; one that differs from
    another in its last token alone is read with that. `answers` follow prompts of `prompt_tokens` in all and have
    `new_tokens` in all at most.
    """

    documents: int
    readings: int = 0
    read_tokens: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True)
class TaskWork:
    """A benchmark. `of_merged`: base, tuned model and merged weights go through it, else the first two. `fetched_bytes`
    of documents come over a network. These and `asked` are None where lm-eval is not here to say it; then `limit`
    bounds the documents of each of its tasks.
    """

    name: str
    of_merged: bool
    limit: int | None
    fetched_bytes: int | None = None
    asked: TaskRequests | None = None

    @classmethod
    def unknown(cls, spec: TaskSpec) -> TaskWork:
        return cls(spec.name, spec.merged, spec.limit)


def work_of(benchmark: Benchmark, index: int, tokenizer: Any) -> TaskWork:
    """Of entry number `index`. Raises `InputError` for documents that do not fit their task."""
    spec = benchmark.spec
    with fit(spec.name, f"/evaluation/tasks/{index}"):
        parts = [_asked(task, spec, tokenizer) for task in benchmark.loaded["tasks"].values()]
    whole = TaskRequests(*(sum(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))
    return TaskWork(spec.name, spec.merged, spec.limit, benchmark.fetched_bytes, whole)


def require_room(benchmarks: Sequence[Benchmark], base: Path, tokenizer: Any) -> None:
    """Raises `InputError` for a task whose answers may take all that the model can read and say: lm-eval would find out
    by the first question.
    """
    from lm_eval.models.utils import resolve_max_length
    from transformers import AutoConfig

    window = resolve_max_length(
        AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False), tokenizer
    )
    for each in benchmarks:
        tasks = [task for task in each.loaded["tasks"].values() if task.OUTPUT_TYPE == "generate_until"]
        longest = max((_length(task.config.generation_kwargs or {}) for task in tasks), default=0)
        if longest >= window:
            raise InputError("answers to this task may fill the model's window, with no room for a question",
                             where=f"/evaluation/tasks/{each.index}", found=f"{each.spec.name}: {longest} tokens",
                             expected=f"fewer than {window} tokens", hint="Leave it out")  # fmt: skip


def _asked(task: Any, spec: TaskSpec, tokenizer: Any) -> TaskRequests:
    """Of one task, all its documents by those that are looked at, which lie evenly among them."""
    documents = min(len(task.eval_docs), spec.limit or len(task.eval_docs))
    looked = sorted({number * documents // SAMPLED for number in range(SAMPLED)})
    chat = spec.chat_template
    task.set_fewshot_seed(seed=SEED)
    task.build_all_requests(samples=looked, apply_chat_template=chat, chat_template=_contents if chat else None,
                            fewshot_as_multiturn=chat)  # fmt: skip
    kinds: dict[str, list[Any]] = {}
    for request in task.instances:
        kinds.setdefault(request.request_type, []).append(request.args)
    answers = kinds.pop("generate_until", [])
    # As lm-eval reads them: the last token is what is likely or not, and comes in nowhere.
    read = {tuple(tokenizer.encode("".join(args)))[:-1] for each in kinds.values() for args in each}
    found = (
        len(read),
        sum(map(len, read)),
        len(answers),
        sum(len(tokenizer.encode(prompt)) for prompt, _ in answers),
        sum(_length(options) for _, options in answers),
    )
    return TaskRequests(documents, *(round(count * documents / max(1, len(looked))) for count in found))


def _contents(chat: Sequence[Mapping[str, str]], **_: object) -> str:
    """What is said in it: the model's own template is a program from elsewhere, and adds few tokens."""
    return "\n".join(turn["content"] for turn in chat)


def _length(options: Mapping[str, Any]) -> int:
    return int(next((options[name] for name in LENGTHS if name in options), USUAL_LENGTH))
