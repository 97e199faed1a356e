"""What a worker does with one request."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, cast

from job.data.worker import sandbox
from job.data.worker.control import ControlTokens
from job.data.worker.messages import Message, RowFault, names, row_mark
from job.data.worker.options import those_with
from job.data.worker.reasons import differ_in_space_alone, teaches, why_unlearned
from job.data.worker.render import ChatTemplate
from job.data.worker.rendered import Rendered
from job.data.worker.shape import (
    Chat,
    Columns,
    Document,
    Example,
    Labelled,
    Pair,
    Preference,
    Row,
    question_and_answer,
    require_good,
    shape,
)
from job.data.worker.tokenise import WEIGHT, Sequence, Tokeniser
from job.data.worker.tokens import Span
from job.data.worker.wire import MARKED, Job, Reply, Request, Source

CHAT_TEMPLATE = "/data/chat_template"

Stage = Callable[[str], None]  # called before a template runs, so that the job can name the one that never returns


def answer(request: Request, tokenizer: Any, stage: Stage) -> tuple[Reply, bytes]:
    """The reply to one request; in the body ids and labels of sequences."""
    body = bytearray()
    try:
        return OPERATIONS[request.operation](Batch(request.job, tokenizer, stage), request, body), bytes(body)
    except sandbox.TemplateRefusedError as error:
        return Reply(refused=str(error)), b""
    except sandbox.TemplateFailedError as error:
        return Reply(failed=str(error)), b""


class Batch:
    def __init__(self, job: Job, tokenizer: Any, stage: Stage) -> None:
        self._template = ChatTemplate(job.chat_template, job.variables, job.end_tokens) if job.chat_template else None
        self._learn_all = job.train_on == "all"
        self._tokeniser = Tokeniser(tokenizer, job.max_seq_length, job.prefix_ids, job.eos_id)
        self._stage = stage
        self._control = ControlTokens(job.end_tokens)

    @property
    def template(self) -> ChatTemplate:
        if self._template is None:
            raise RowFault("message lists need a chat template, and the job's other rows are raw text")
        return self._template

    def turn_end(self, *_: Any) -> Reply:
        """The text that closes an assistant turn, such as `<|im_end|>`; empty if nothing does."""
        self._stage(CHAT_TEMPLATE)
        try:
            rendered = self.template.conversation(Chat(question_and_answer("a", "b")))
        except RowFault as error:
            return Reply(failed=str(error))
        (turn,) = rendered.turns
        return Reply(turn_end=rendered.text[turn.content_end : turn.end].strip())

    def rows(self, request: Request, body: bytearray) -> Reply:
        """Sequences of the rows, or pairs of them, and to the `body` their ids and labels, and what else a row has.

        A row that cannot be used is a fault, one that teaches nothing is dropped; both with their reason, the latter
        with its tokens as well. `remarks` counts what was in the rows and is not learned as it was there, by kind.
        """
        remarks: Counter[str] = Counter()
        reply = Reply(remarks=remarks)
        for index, example in self._examples(request, reply, remarks):
            try:
                parts, found = self._parts(example)
            except RowFault as error:
                reply.faults.append([index, str(error), ""])
                continue
            except sandbox.TemplateFailedError as error:
                reply.faults.append([index, str(error), CHAT_TEMPLATE])
                continue
            remarks.update(found)
            remarks.update(self._control.written_in(example))
            kept = [part for part in parts if teaches(part)]
            if not kept:
                tokens = max((sequence.whole_tokens for part in parts for sequence in part), default=0)
                reply.dropped.append([index, why_unlearned(example, parts), tokens])
            remarks["spaced"] += bool(kept) and differ_in_space_alone(example)
            remarks["unknown"] += any(self._tokeniser.has_unknown(sequence) for part in kept for sequence in part)
            for part in kept:
                data = b"".join(sequence.input_ids.tobytes() + sequence.labels.tobytes() for sequence in part)
                further = array("i", [example.desirable]) if isinstance(example, Labelled) else part[0].weights
                data += further.tobytes()
                digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
                trained, truncated = sum(s.trained_tokens for s in part), any(s.truncated for s in part)
                lengths = [len(s.input_ids) for s in part]
                reply.sequences.append([index, lengths, trained, truncated, digest, len(further)])
                body += data
        return reply

    def questions(self, request: Request, _: bytearray) -> Reply:
        """Prompts of rows up to their last answer, with that answer as reference; rows without one are left out."""
        found = [(row, self._question(example)) for row, example in self._examples(request, Reply(), Counter())]
        return Reply(questions=[self._with_choices(question, request, row) for row, question in found if question])

    def prompts(self, request: Request, _: bytearray) -> Reply:
        """User messages through the chat template with a generation prompt; raw where the job has no template."""
        self._stage(CHAT_TEMPLATE)
        return Reply(questions=[self._prompt(text) for text in request.prompts])

    def renderings(self, request: Request, _: bytearray) -> Reply:
        """The text of each [messages, tools, whether a prompt follows]; null where the template fails on it."""
        self._stage(CHAT_TEMPLATE)
        return Reply(renderings=[self.template.attempt(*conversation) for conversation in request.conversations])

    def _prompt(self, prompt: str) -> list[Any]:
        if self._template is None:
            return [prompt, self._tokeniser.raw_ids(prompt), None]
        text = self._template.render([{"role": "user", "content": prompt}], prompt=True)
        return [text, list(self._tokeniser.encode(text).ids), None]

    def _question(self, example: Example) -> list[Any] | None:
        if isinstance(example, Preference):
            return self._question(example.chosen)
        if isinstance(example, Labelled):
            return self._question(example.answer) if example.desirable else None
        if isinstance(example, Pair):
            return [example.prompt, self._tokeniser.raw_ids(example.prompt), example.completion]
        if isinstance(example, Document):
            return None
        rendered = self.template.conversation(example)
        if not rendered.turns:
            return None
        last = rendered.turns[-1]
        prompt = rendered.text[: last.start]
        return [prompt, list(self._tokeniser.encode(prompt).ids), rendered.text[last.start : last.content_end]]

    def _with_choices(self, question: list[Any], request: Request, row: int) -> list[Any]:
        """The question with the ids of each choice, if its reference is one of them, that choice's number, how many ids
        of the prompt come before (all, unless a tokenizer puts its end and a choice's beginning into one token), and
        the choices themselves. White space at the ends does not count, and choices begin with the reference's.
        """
        prompt, prompt_ids, reference = question
        own = those_with(reference, request.rows[row].get(request.choices_column))
        said = [choice.strip() for choice in own or request.choices]
        if reference.strip() not in said:
            return question
        opening = reference[: len(reference) - len(reference.lstrip())]
        before = prompt_ids[: len(prompt_ids) - len(self._tokeniser.encode(prompt).ids)]  # what opens raw text
        wholes = [[*before, *self._tokeniser.encode(f"{prompt}{opening}{choice}").ids] for choice in said]
        shared = min(_shared(prompt_ids, whole) for whole in wholes)
        if not shared:  # nothing is before the choices that they could be likely after
            return question
        return [*question, [whole[shared:] for whole in wholes], said.index(reference.strip()), shared, said]

    def _parts(self, example: Example) -> tuple[list[tuple[Sequence, ...]], Counter[str]]:
        """Each sequence of an example, or its one pair; and what was in it and is not learned as it was there."""
        if isinstance(example, Labelled):
            sequences, found = self._sequences(example.answer)
            found["desirable" if example.desirable else "undesirable"] += 1
            return [(sequence,) for sequence in sequences], found
        if not isinstance(example, Preference):
            sequences, found = self._sequences(example)
            return [(sequence,) for sequence in sequences], found
        if isinstance(example.chosen, Chat) and isinstance(example.rejected, Chat):
            chats = [self._chat(side) for side in (example.chosen, example.rejected)]
            if len({prompt for _, _, prompt in chats if prompt is not None}) > 1:
                raise RowFault("the chat template writes the prompt of chosen and rejected in two ways")
            return [tuple(sequence for sequence, *_ in chats)], chats[0][1] + chats[1][1]
        sides = [self._sequences(side) for side in (example.chosen, example.rejected)]
        pair = tuple(sequence for sequences, _ in sides for sequence in sequences)
        return [pair] if len(pair) == len(sides) else [], sides[0][1] + sides[1][1]

    def _sequences(self, example: Chat | Pair | Document) -> tuple[list[Sequence], Counter[str]]:
        nothing: Counter[str] = Counter()
        if isinstance(example, Document):
            return list(self._tokeniser.document(example.text)), nothing
        if isinstance(example, Pair):
            useful = self._learn_all or example.completion.strip()
            pair, border = self._tokeniser.pair(example.prompt, example.completion, self._learn_all)
            return ([pair], Counter(border and [border])) if useful else ([], nothing)
        sequence, found, _ = self._chat(example)
        return [sequence], found

    def _chat(self, chat: Chat) -> tuple[Sequence, Counter[str], str | None]:
        """The sequence, what is not learned as it was there, and the text before the first learned answer, if any."""
        rendered = self.template.conversation(chat)
        spans = [(turn.start, turn.end) for turn in rendered.turns]
        if self._learn_all:
            hidden = self.template.hidden(chat, rendered.text)
            bounds = [0, *(bound for span in hidden for bound in span), len(rendered.text)]
            spans = list(pairwise(bounds))[::2]
            del rendered.remarks["wished"], rendered.remarks["empty"]
        starts = [turn.start for turn in rendered.turns]
        sequence, merged = self._tokeniser.chat(rendered.text, spans, starts, self._weighted(chat, rendered))
        rendered.remarks["weighted"] += len(sequence.weights) // WEIGHT
        rendered.remarks["merged"] += merged
        prompt = rendered.text[: rendered.turns[0].start] if rendered.turns else None
        return sequence, +rendered.remarks, prompt

    def _weighted(self, chat: Chat, rendered: Rendered) -> list[tuple[Span, int]]:
        """What is learned in part, with its weight in millionths."""
        if self._learn_all:
            places = self.template.marked(chat, chat.weights, rendered.text)
        else:
            turns = zip(rendered.answers, rendered.turns, strict=True)
            places = {number: (turn.start, turn.end) for number, turn in turns if number in chat.weights}
        return [(span, chat.weights[number]) for number, span in places.items()]

    def _examples(self, request: Request, reply: Reply, remarks: Counter[str]) -> Iterator[tuple[int, Example]]:
        """The rows as examples; faulty ones and those marked not to be learned go to the reply."""
        source = cast("Source", request.source)
        columns = Columns(source.columns, source.input_joint)
        rows = list(self._unmarked(source, list(enumerate(request.rows)), reply, remarks))
        chats = self._templated(source, rows, reply.faults) if source.template else {}
        self._stage(CHAT_TEMPLATE if self._template else "")
        for index, row in rows:
            if index in chats:
                yield index, Chat(chats[index])
            if source.template:
                continue
            try:
                yield index, shape(source.format, row, columns)
            except RowFault as error:
                reply.faults.append([index, str(error), ""])

    def _unmarked(
        self, source: Source, rows: list[tuple[int, Row]], reply: Reply, remarks: Counter[str]
    ) -> Iterator[tuple[int, Row]]:
        """Rows that are not marked, beside what they hold, as not to be learned."""
        data = set(source.columns.values())  # that are read under the name of a mark are none
        for role, text in source.template.items():
            self._stage(f"{source.pointer}/template/{role}")
            data |= sandbox.columns_of(text)
        for index, row in rows:
            try:
                learned, others = row_mark(row, data)
                if source.template:
                    require_good(source.format, row, data)
            except RowFault as error:
                reply.faults.append([index, str(error), ""])
                continue
            remarks.update(f"mark {name}" for name in others)
            if learned == 0:
                reply.dropped.append([index, MARKED, 0])
            else:
                yield index, row

    def _templated(
        self, source: Source, rows: list[tuple[int, Row]], faults: list[list[Any]]
    ) -> dict[int, list[Message]]:
        """Messages of the rows rendered through the source's own system, user and assistant templates, by row."""
        turns: dict[str, dict[int, str]] = {role: {} for role in source.template}
        for role, text in source.template.items():
            pointer = f"{source.pointer}/template/{role}"
            self._stage(pointer)
            for index, row in rows:
                try:
                    turns[role][index] = sandbox.render(text, row, strict=True)
                except sandbox.TemplateFailedError as error:
                    faults.append([index, f"{error}; its columns are {names(row)}", pointer])
        whole = set.intersection(*(set(found) for found in turns.values()))
        return {index: _messages({role: found[index] for role, found in turns.items()}) for index in whole}


def _shared(prompt: list[int], whole: list[int]) -> int:
    """Tokens that both begin with; at least one is left of the whole."""
    most = min(len(prompt), len(whole) - 1)
    return next((place for place in range(most) if prompt[place] != whole[place]), most)


def _messages(turns: dict[str, str]) -> list[Message]:
    system = [{"role": "system", "content": turns["system"]}] if "system" in turns else []
    return system + question_and_answer(turns["user"], turns["assistant"])


OPERATIONS: dict[str, Callable[[Batch, Request, bytearray], Reply]] = {
    "turn_end": Batch.turn_end,
    "rows": Batch.rows,
    "questions": Batch.questions,
    "prompts": Batch.prompts,
    "renderings": Batch.renderings,
}
