"""What a GGUF is asked: few questions, for its answers are dear on a CPU."""

from __future__ import annotations

from job.evaluation.metrics import metric_of
from job.export.artefacts import Artefacts
from job.gguf.quality import SLACK_TOKENS, AskedIds


def asked_of(artefacts: Artefacts, name: str) -> AskedIds:
    """Questions to the artefact `name`.

    Those with a known answer where a gate on answers is to hold for it, and choices where a gate on these is; of the
    prompts, which are for show, those whose answer by the trained model has an end, and quantised models may take a
    little longer.
    """
    spec, delivered = artefacts.run.spec, artefacts.delivered
    most = spec.evaluation.max_new_tokens
    gated = [metric_of(gate.metric) for gate in spec.evaluation.gates if gate.holds_for(name)]
    known = any(metric.needs_answers for metric in gated)
    readings = delivered.readings(any(metric.of_choice for metric in gated))
    prompts, questions = delivered.questions(False), delivered.questions(known)
    lengths = artefacts.answer_tokens[: len(prompts)]
    shown = [0 if length is None else min(most, 2 * length + SLACK_TOKENS) for length in lengths]
    lengths_of_all = shown + [most] * (len(questions) - len(prompts))
    return AskedIds([question.input_ids for question in questions], lengths_of_all, readings)
