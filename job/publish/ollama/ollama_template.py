"""The job's chat template in Ollama's language, made from what the Jinja one rendered and proven against it.

What a chat template writes in front of a message depends on the message's role and on whose message came before; a Go
template can say just that. Templates that put the system prompt into the last question are known as well. Whether a
candidate is right is not argued but tried: it must render every probe as the trained template did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from job.data.build import TemplateProbe
from job.publish.ollama import go_template
from job.publish.ollama.go_template import quoted

ROLES = ("system", "user", "assistant")
ANSWER = "answer"  # what comes after the last message, where the model goes on
MAX_CHARACTERS = 32_768

Transitions = dict[tuple[str, str], str]  # (role before or "", role) → text in front of the message


@dataclass(frozen=True)
class OllamaTemplate:
    """Go template, and what in a chat it renders otherwise than the trained template."""

    text: str
    differences: tuple[str, ...]


def translate(probes: Sequence[TemplateProbe], begin: str) -> OllamaTemplate | None:
    """The template that renders every everyday probe as the Jinja did; None if there is none in our forms.

    `begin` is the token that llama.cpp itself puts in front of a prompt, "" where it puts none.
    """
    everyday = [_Rendered.of(probe, begin) for probe in probes if not probe.about and probe.text is not None]
    besides = [_Rendered.of(probe, begin) for probe in probes if probe.about and probe.text is not None]
    for candidate in _candidates(everyday, besides) if everyday else ():
        if len(candidate) <= MAX_CHARACTERS and all(rendered.equals(candidate) for rendered in everyday):
            return OllamaTemplate(candidate, tuple(_differences(candidate, probes, begin)))
    return None


@dataclass(frozen=True)
class _Rendered:
    """A probe as roles and contents with the text that is to come out of them."""

    roles: tuple[str, ...]
    contents: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, probe: TemplateProbe, begin: str) -> _Rendered:
        contents = tuple(message["content"] for message in probe.messages)
        text = (probe.text or "").removeprefix(begin)
        if not probe.prompt:  # an answer that ends a chat is continued: nothing may follow it
            head, found, _ = text.rpartition(contents[-1])
            text = head + found
        return cls(tuple(message["role"] for message in probe.messages), contents, text)

    def equals(self, template: str) -> bool:
        messages = [{"role": role, "content": content} for role, content in zip(self.roles, self.contents, strict=True)]
        return go_template.render(template, messages) == self.text

    def pieces(self) -> list[str] | None:
        """The texts before, between and after the contents; None where one is not there, or not in its place."""
        found, rest = [], self.text
        for content in self.contents:
            before, mark, rest = rest.partition(content)
            if not mark:
                return None
            found.append(before)
        return [*found, rest]


def _candidates(everyday: Sequence[_Rendered], besides: Sequence[_Rendered]) -> Iterator[str]:
    """Templates that may be right, those that say most first."""
    late_system = [rendered for rendered in besides if "system" in rendered.roles[1:]]
    plain = _transitions([rendered for rendered in everyday if "system" not in rendered.roles])
    for whole in (_transitions([*everyday, *late_system]), _transitions(everyday)):
        if whole:
            yield _template(whole, None)
    for rendered in everyday:
        pieces = rendered.pieces()
        if plain and pieces and rendered.roles == ("system", "user"):
            yield _template(plain, pieces[1])
    if plain:
        yield _template(plain, None)


def _transitions(everyday: Sequence[_Rendered]) -> Transitions | None:
    """What comes between any two roles; None where it depends on more than them."""
    found: Transitions = {}
    for rendered in everyday:
        pieces = rendered.pieces()
        if pieces is None:
            return None
        for step, piece in zip(zip(("", *rendered.roles), (*rendered.roles, ANSWER), strict=True), pieces, strict=True):
            before, role = step
            key = ("", ANSWER) if role == ANSWER else (before, role)
            if found.setdefault(key, piece) != piece:
                return None
    return found


def _template(transitions: Transitions, after_system: str | None) -> str:
    """The Go template; with `after_system`, system prompt and that text open the last message, if a question."""
    actions = ['$before := ""', "range $index, $message := .Messages"]
    named = [role for role in ROLES if any(role == after for _, after in transitions)]
    for role in named:
        actions.append(f'{"if" if role == named[0] else "else if"} eq .Role "{role}"')
        actions += _in_front({before: text for (before, after), text in transitions.items() if after == role})
        if role == "user" and after_system is not None:
            actions += [
                "if and $.System (eq (len (slice $.Messages $index)) 1)",
                "$.System",
                *_literal(after_system),
                "end",
            ]
        actions += [".Content", "$before = .Role"]
    actions += ["end", "end", 'if ne $before "assistant"', *_literal(transitions["", ANSWER]), "end"]
    return "\n".join(f"{{{{- {action} }}}}" for action in actions)


def _in_front(texts: dict[str, str]) -> list[str]:
    """Actions that write what comes before a role's messages, by the role before; the commonest comes last."""
    groups: dict[str, list[str]] = {}
    for before, text in sorted(texts.items(), key=lambda item: ("", *ROLES).index(item[0])):
        groups.setdefault(text, []).append(f'"{before}"')
    *special, general = groups
    actions: list[str] = []
    for text in special:
        actions += [f"{'else ' if actions else ''}if eq $before {' '.join(groups[text])}", *_literal(text)]
    return [*actions, "else", *_literal(general), "end"] if special else _literal(general)


def _literal(text: str) -> list[str]:
    return [quoted(text)] if text else []


def _differences(template: str, probes: Sequence[TemplateProbe], begin: str) -> Iterator[str]:
    for probe in probes:
        if begin and probe.text is not None and not probe.text.startswith(begin):
            yield f"the beginning: llama.cpp puts {quoted(begin)} there"
            break
    everyday = [probe for probe in probes if not probe.about]
    if not any(
        m["role"] == "system" and m["content"] in (probe.text or "") for probe in everyday for m in probe.messages
    ):
        yield "a system message in front, for which the trained template has no place"
    about = {probe.about: True for probe in probes if probe.about and probe.text is not None}
    for name in about:
        if not all(
            _Rendered.of(probe, begin).equals(template)
            for probe in probes
            if probe.about == name and probe.text is not None
        ):
            yield name
