"""What a Go text/template says, for the part of the language that our Ollama templates use.

Reads the template's text as Go does (trim markers, quoted strings, scopes left out as no name is used twice) and
renders messages through it as Ollama would. It exists to prove a template before it is written, so it knows nothing
of how the template came about. Source: pkg.go.dev/text/template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPACE = " \t\r\n"
PIECE = re.compile(r'\{\{(?P<left>-[ \t\r\n])?(?P<action>(?:"(?:[^"\\\n]|\\.)*"|[^"{}])*?)(?P<right>[ \t\r\n]-)?\}\}')
WORD = re.compile(r'\s*("(?:[^"\\\n]|\\.)*"|:=|[()=,]|\$?(?:\.\w+)+|\$\w*|\w+)')
ESCAPE = re.compile(r"\\(u[0-9a-f]{4}|U[0-9a-f]{8}|.)")
PLAIN_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


class NotUnderstoodError(Exception):
    """The template uses what this part of the language does not have."""


@dataclass
class Block:
    """A control structure: `range` with its clause and body, or `if` with each condition and what it guards."""

    head: str
    bodies: list[tuple[list[str], list[Node]]]


Node = str | list[str] | Block  # text, action, control structure


def quoted(text: str) -> str:
    """`text` as a Go string literal on one line, of characters that a Modelfile keeps."""
    shown = {character: f"\\{name}" for name, character in PLAIN_ESCAPES.items()}
    return '"' + "".join(shown.get(c) or (c if c.isprintable() else _code(c)) for c in text) + '"'


def _code(character: str) -> str:
    point = ord(character)
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def unquoted(literal: str) -> str:
    def meaning(match: re.Match[str]) -> str:
        name = match[1]
        return chr(int(name[1:], 16)) if len(name) > 1 else PLAIN_ESCAPES[name]

    return ESCAPE.sub(meaning, literal[1:-1])


def render(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt that Ollama makes of `messages` (role and content each). Raises `NotUnderstoodError`."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    root = {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    return _Rendering(root).run(parse(template), root)


# ---------------------------------------------------------------------------------------------- reading


def parse(template: str) -> list[Node]:
    """The template's nodes. Raises `NotUnderstoodError`."""
    open_bodies: list[list[Node]] = [[]]
    open_blocks: list[Block] = []
    for node in _pieces(template):
        head = "" if isinstance(node, str) else node[0]
        if head in ("else", "end"):
            if not open_blocks:
                raise NotUnderstoodError(f"{head} without a beginning")
            open_bodies.pop()
        if head == "end":
            open_blocks.pop()
        elif head == "else":
            open_bodies.append([])
            open_blocks[-1].bodies.append((list(node[2:]) or ["true"], open_bodies[-1]))
        elif head in ("if", "range"):
            block = Block(head, [(list(node[1:]), [])])
            open_bodies[-1].append(block)
            open_blocks.append(block)
            open_bodies.append(block.bodies[0][1])
        else:
            open_bodies[-1].append(node)
    if open_blocks:
        raise NotUnderstoodError("a block without an end")
    return open_bodies[0]


def _pieces(template: str) -> Iterator[str | list[str]]:
    """Text and actions in turn, with the white space gone that trim markers take away."""
    position, trim = 0, False
    for match in PIECE.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip(SPACE) if trim else text
        yield _plain(text.rstrip(SPACE) if match["left"] else text)
        yield _words(match["action"])
        position, trim = match.end(), bool(match["right"])
    rest = template[position:]
    yield _plain(rest.lstrip(SPACE) if trim else rest)


def _plain(text: str) -> str:
    if "{{" in text:
        raise NotUnderstoodError(text)
    return text


def _words(action: str) -> list[str]:
    words: list[str] = []
    position = 0
    while action[position:].strip():
        match = WORD.match(action, position)
        if not match:
            raise NotUnderstoodError(action)
        words.append(match[1])
        position = match.end()
    if not words:
        raise NotUnderstoodError("an empty action")
    return words


# ---------------------------------------------------------------------------------------------- rendering


class _Rendering:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._variables: dict[str, Any] = {"$": root}

    def run(self, nodes: Sequence[Node], dot: Any) -> str:
        return "".join(self._node(node, dot) for node in nodes)

    def _node(self, node: Node, dot: Any) -> str:
        if isinstance(node, str):
            return node
        if isinstance(node, Block):
            return self._block(node, dot)
        if len(node) > 2 and node[1] in (":=", "="):
            self._variables[node[0]] = self._value(node[2:], dot)
            return ""
        return str(self._value(node, dot))

    def _block(self, block: Block, dot: Any) -> str:
        if block.head == "if":
            return self.run(next((body for condition, body in block.bodies if self._value(condition, dot)), []), dot)
        ((clause, body),) = block.bodies
        *names, listed = clause
        index, element = [word for word in names if word.startswith("$")] or ("", "")
        parts = []
        for number, item in enumerate(self._value([listed], dot)):
            self._variables |= {index: number, element: item}
            parts.append(self.run(body, item))
        return "".join(parts)

    def _value(self, words: Sequence[str], dot: Any) -> Any:
        """The value of a pipeline's words: one operand, or a function with its operands."""
        operands: list[Any] = []
        rest = list(words)
        while rest:
            operands.append(self._operand(rest, dot))
        if isinstance(operands[0], _Function):
            return operands[0].apply(operands[1:])
        if len(operands) > 1:
            raise NotUnderstoodError(" ".join(words))
        return operands[0]

    def _operand(self, rest: list[str], dot: Any) -> Any:
        """The first operand of `rest`, which loses its words."""
        word = rest.pop(0)
        if word == "(":
            return self._value(_until_closed(rest), dot)
        if word.startswith('"'):
            return unquoted(word)
        if word.startswith("."):
            return _named(dot, word[1:])
        if word.startswith("$."):
            return _named(self._variables["$"], word[2:])
        if word.startswith("$"):
            return _named(self._variables, word)
        if word.isdecimal():
            return int(word)
        return True if word == "true" else _Function(word)


def _named(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise NotUnderstoodError(name)
    return values[name]


def _until_closed(rest: list[str]) -> list[str]:
    """The words up to the bracket that closes; `rest` loses them and it."""
    depth = 1
    inner: list[str] = []
    while rest:
        word = rest.pop(0)
        depth += {"(": 1, ")": -1}.get(word, 0)
        if not depth:
            return inner
        inner.append(word)
    raise NotUnderstoodError("an open bracket")


@dataclass(frozen=True)
class _Function:
    name: str

    def apply(self, operands: list[Any]) -> Any:
        match self.name, operands:
            case "eq", [first, *others]:
                return first in others
            case "ne", [first, other]:
                return first != other
            case "and", [first, other]:
                return other if first else first
            case "len", [listed]:
                return len(listed)
            case "slice", [listed, start]:
                return listed[start:]
        raise NotUnderstoodError(self.name)
