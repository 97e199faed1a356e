"""How a file is written so that nothing in a spec can become part of it: YAML, shell words, comments.

A spec is text of others. In YAML it is a scalar that every reader of YAML 1.1 and 1.2 takes the same way, in
shell as one quoted word; neither holds the opening mark of an expression of GitHub Actions or dstack.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml

Json = dict[str, Any]

EXPRESSION = "${{"
# Plain scalars are read differently by YAML 1.1 and 1.2 (1e3, 0o17, y, 12:30); these are text to both.
PLAIN = re.compile(r"(?![yYnN]$)[A-Za-z/][A-Za-z0-9 _./@:=+-]*")
# Line ends that only some readers take for such, and what an editor would show as nothing.
UNSHOWN = re.compile("[^\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _string(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    if "\n" in text and not UNSHOWN.search(text):
        style: str | None = "|"
    else:
        style = None if PLAIN.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def documents(header: list[str], *parts: Json) -> str:
    """One YAML file of these documents in the order of their keys, under comment lines."""
    dumped = (yaml.dump(part, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 30) for part in parts)
    return comment(header) + "---\n".join(dumped)


def comment(lines: list[str]) -> str:
    """Comment lines of YAML and shell, whatever the text holds."""
    return "".join(f"# {re.sub(r'[^ -~]', '?', line)}".rstrip() + "\n" for line in lines)


def word(text: str) -> str:
    """`text` as one word of a POSIX shell, also inside what GitHub Actions or dstack read for expressions first."""
    return shlex.quote(text).replace(EXPRESSION, "$''{{")
