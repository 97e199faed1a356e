"""Writes the demo's rows: household commands in varied English and the JSON they mean.

    python tests/demo/make_rows.py

A row is one command and its answer, keys always in the order device, room, action, value. Training rows and held-out
rows share the vocabulary and no sentence; held-out rows are other combinations of device, room, action and value, and
some of their phrasings are a mix of an opening and an ending that no training row pairs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

SEED = 20
TRAIN_ROWS = 480
HELD_OUT_ROWS = 60
ROOMS = ("kitchen", "hallway", "bedroom", "bathroom", "office", "garage", "nursery", "attic")
SWITCHES = ("lamp", "fan", "heater", "radio")
# action -> (devices that take it, phrases around the device and the room, range of its value or None)
Phrases = tuple[str, ...]
ACTIONS: dict[str, tuple[Phrases, Phrases, range | None]] = {
    "on": (
        SWITCHES,
        (
            "turn on the {d} in the {r}",
            "switch the {r} {d} on",
            "start the {d} in the {r}",
            "get the {r} {d} running",
            "power up the {r} {d}",
        ),
        None,
    ),
    "off": (
        SWITCHES,
        (
            "turn off the {d} in the {r}",
            "switch the {r} {d} off",
            "stop the {d} in the {r}",
            "shut the {r} {d} down",
            "power down the {r} {d}",
        ),
        None,
    ),
    "open": (
        ("blind", "window", "door"),
        ("open the {d} in the {r}", "open up the {r} {d}", "get the {r} {d} open", "leave the {d} of the {r} open"),
        None,
    ),
    "close": (
        ("blind", "window", "door"),
        (
            "close the {d} in the {r}",
            "shut the {d} in the {r}",
            "close up the {r} {d}",
            "make sure the {d} of the {r} is closed",
        ),
        None,
    ),
    "dim": (
        ("lamp",),
        (
            "dim the {d} in the {r} to {v} percent",
            "bring the {r} {d} down to {v}%",
            "lower the {d} of the {r} to {v} percent",
        ),
        range(5, 100, 5),
    ),
    "set": (
        ("heater", "thermostat"),
        (
            "set the {d} in the {r} to {v} degrees",
            "put the {r} {d} at {v} degrees",
            "keep the {d} of the {r} at {v} degrees",
        ),
        range(15, 29),
    ),
}
OPENINGS = ("", "please ", "could you ", "can you ", "hey, ", "would you ", "now ", "it is late, so ")
ENDINGS = ("", " please", " for me", " right away", " when you can", ", thanks")
HELD_OUT_PAIRS = {
    ("could you ", ", thanks"),
    ("hey, ", " right away"),
    ("now ", " for me"),
    ("would you ", " when you can"),
}

Command = tuple[str, str, str, int | None]


def commands() -> Iterator[Command]:
    """Every device, room, action and value that make sense together."""
    for action, (devices, _, values) in ACTIONS.items():
        for device in devices:
            for room in ROOMS:
                for value in values or (None,):
                    yield device, room, action, value


def answer(command: Command) -> str:
    device, room, action, value = command
    fields = {"device": device, "room": room, "action": action} | ({} if value is None else {"value": value})
    return json.dumps(fields, separators=(",", ":"))


def sentence(command: Command, opening: str, phrase: str, ending: str) -> str:
    device, room, _, value = command
    text = opening + phrase.format(d=device, r=room, v=value) + ending
    question = opening.strip().split(" ")[0] in ("could", "can", "would")
    return text[0].upper() + text[1:] + ("?" if question else ".")


def rows(chosen: list[Command], count: int, pairs: list[tuple[str, str]], rng: random.Random) -> list[str]:
    """`count` JSON lines in the `messages` format; each sentence once, actions in equal parts."""
    by_action = {action: [c for c in chosen if c[2] == action] for action in ACTIONS}
    texts: dict[str, str] = {}
    while len(texts) < count:
        action = list(ACTIONS)[len(texts) % len(ACTIONS)]
        command = rng.choice(by_action[action])
        text = sentence(command, *_around(rng.choice(pairs), rng.choice(ACTIONS[action][1])))
        texts.setdefault(text, answer(command))
    return [
        json.dumps({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]})
        for user, reply in texts.items()
    ]


def _around(pair: tuple[str, str], phrase: str) -> tuple[str, str, str]:
    return pair[0], phrase, pair[1]


def make() -> tuple[list[str], list[str]]:
    """Training and held-out lines; no combination of device, room, action and value is in both."""
    rng = random.Random(SEED)
    train, held_out = [], []
    for action in ACTIONS:
        every = [command for command in commands() if command[2] == action]
        rng.shuffle(every)
        kept = max(3, len(every) // 6)
        held_out += every[:kept]
        train += every[kept:]
    pairs = [(opening, ending) for opening in OPENINGS for ending in ENDINGS]
    polite = [pair for pair in pairs if not ("please" in pair[0] and "please" in pair[1])]
    common = [pair for pair in polite if pair not in HELD_OUT_PAIRS]
    return rows(train, TRAIN_ROWS, common, rng), rows(
        held_out, HELD_OUT_ROWS, [*common, *sorted(HELD_OUT_PAIRS) * 3], rng
    )


def main() -> None:
    for name, lines in zip(("train", "held_out"), make(), strict=True):
        (Path(__file__).parent / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
