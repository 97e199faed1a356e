"""Jinja in a sandbox. It runs only in worker processes, whose time and memory the parent bounds.

The environment renders byte for byte what `apply_chat_template` of transformers renders, apart from two things that
a reproducible job needs: the date is fixed, and reaching for a forbidden attribute is an error instead of nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

LOOP = frozenset(["first", "last", "index", "index0", "revindex", "revindex0", "length"])  # numbers and truth values
TODAY = datetime(2024, 7, 26)  # the date Llama 3.1's template falls back on
MAX_RENDERED_CHARACTERS = 4 << 20


class TemplateRefusedError(Exception):
    """The template does what no template may: exit 12."""


class TemplateFailedError(Exception):
    """The template does not fit the row or is not Jinja: exit 11."""


class _Generation(Extension):
    """Accepts `{% generation %}`; masks come from rendering offsets, so the tag only passes its body on.

    A call block, as in transformers: what the body sets is not seen outside it.
    """

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass_on"), [], [], body).set_lineno(line)

    def _pass_on(self, caller: Callable[[], str]) -> str:
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As the base class has it, which takes half of a short rendering to find out that `loop.first` is."""
        return (type(obj) is LoopContext and attr in LOOP) or super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is forbidden")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _not_null(value: Any) -> Any:
    if value is None:
        raise TemplateError("null would be written as None; write {{ column or '' }}, or what is to be there instead")
    return value


def _environment(undefined: type[Undefined], finalize: Callable[[Any], Any] | None = None) -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        undefined=undefined,
        finalize=finalize,
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


CHAT = _environment(Undefined)
# A column that is not there is an error, never an empty string, and so is a null, which would be the word None.
COLUMNS = _environment(StrictUndefined, _not_null)
LOADING = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


@lru_cache(maxsize=256)
def compile_template(text: str, strict: bool) -> Template:
    """The compiled template; `strict` for row templates, where an undefined name is an error.

    Raises `TemplateRefusedError` or `TemplateFailedError`.
    """
    environment = COLUMNS if strict else CHAT
    try:
        if next(environment.parse(text).find_all(LOADING), None) is not None:
            raise TemplateRefusedError("it loads another template")
        template = environment.from_string(text)
        template.globals = dict(template.globals)  # a chain of one, which is copied far more slowly at each rendering
        return template
    except TemplateSyntaxError as error:
        raise TemplateFailedError(f"not Jinja: {error.message} (line {error.lineno})") from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise TemplateRefusedError(_reason(error)) from None


@lru_cache(maxsize=256)
def columns_of(text: str) -> frozenset[str]:
    """Names that a row template reads; none where it is not Jinja, which shows when it is rendered."""
    try:
        return frozenset(meta.find_undeclared_variables(COLUMNS.parse(text)))
    except (TemplateError, RecursionError, MemoryError, OverflowError):
        return frozenset()


def render(text: str, variables: Mapping[str, Any], strict: bool = False) -> str:
    """The rendered text. Raises `TemplateRefusedError` or `TemplateFailedError`."""
    template = compile_template(text, strict)
    pieces, characters = [], 0
    try:
        for piece in template.generate(variables):
            characters += len(piece)
            if characters > MAX_RENDERED_CHARACTERS:
                raise TemplateRefusedError(f"it renders more than {MAX_RENDERED_CHARACTERS} characters from one row")
            pieces.append(piece)
    except SecurityError as error:
        raise TemplateRefusedError(str(error)) from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise TemplateRefusedError(_reason(error)) from None
    except UndefinedError as error:
        raise TemplateFailedError(str(error)) from None
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        AssertionError,
    ) as error:
        raise TemplateFailedError(f"{type(error).__name__}: {error}") from None
    return "".join(pieces)


def _reason(error: Exception) -> str:
    words: dict[type[Exception], str] = {
        RecursionError: "it calls itself without end",
        MemoryError: "it needs more memory than it gets",
    }
    return words.get(type(error), f"it counts too far: {error}")
