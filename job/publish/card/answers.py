"""A model card's answers: of base and trained model, what is expected, and where what is delivered says otherwise."""

from __future__ import annotations

from job.publish.card.facts import CardFacts, Sample
from job.report.kept import is_expected
from job.report.markdown import block, code

SAMPLE_CHARACTERS = 2000


def samples(facts: CardFacts) -> list[str]:
    """Lines of Markdown; none without prompts."""
    if not facts.samples:
        return []
    lines = ["## Answers", "", "Greedy, as the run made them; not chosen.", ""]
    for number, sample in enumerate(facts.samples):
        for words, text in (("Prompt", sample.prompt), ("Base", sample.base), ("As trained", sample.trained)):
            lines += _said(words, text)
        lines += _expected(sample)
        given = {
            name: text
            for name, texts in facts.answers.items()
            for text in texts[number : number + 1]
            if text is not None
        }
        same = [code(name) for name, text in given.items() if text == sample.trained]
        lines += [f"The same: {', '.join(same)}.", ""] if same else []
        for name, text in given.items():
            lines += _said(code(name), text) if text != sample.trained else []
    return lines


def _expected(sample: Sample) -> list[str]:
    if sample.reference is None:
        return ["Nothing is expected: this prompt has no reference.", ""]
    equal = "as trained is equal" if is_expected(sample.trained, sample.reference) else "as trained is not equal"
    return _said(f"Expected ({equal})", sample.reference)


def _said(words: str, text: str) -> list[str]:
    shown = text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"
    return [f"{words}:", "", *block(shown, "text")]
