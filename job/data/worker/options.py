"""The answers that a row itself lists, of which one is right."""

from __future__ import annotations

import json
from typing import Any

FEWEST = 2


def listed(cell: Any) -> tuple[list[str], list[str]]:
    """Letters and texts of the answers in a column: a list of texts, lettered from A on, or an object of letters and
    texts; as JSON where the cell is a text, as in a CSV. Both empty for what is neither, or has a blank one.
    """
    try:
        found = json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return [], []
    if isinstance(found, list | tuple):
        found = {chr(ord("A") + number): text for number, text in enumerate(found)}
    if not isinstance(found, dict):
        return [], []
    pairs = {letter: text for letter, text in found.items() if text is not None}  # a table has every letter in each row
    texts = [text for text in pairs.values() if isinstance(text, str) and text.strip()]
    return (list(pairs), texts) if len(texts) == len(pairs) >= FEWEST else ([], [])


def those_with(reference: str, cell: Any) -> list[str]:
    """Of letters and texts those among which `reference` is, texts first; empty where it is among neither, or where two
    are the same.
    """
    for said in reversed(listed(cell)):
        if reference.strip() in (different := {one.strip() for one in said}):
            return said if len(different) == len(said) else []
    return []
