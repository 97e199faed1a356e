"""Rules of a spec about where models and rows come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from job.data.worker.shape import FORMATS
from job.errors import Fault
from job.spec.wording import printable, show

Json = dict[str, Any]

HUB_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
HUB = re.compile(rf"{HUB_WORD}/{HUB_WORD}(?:@{HUB_WORD}(?:/{HUB_WORD}){{0,8}})?")
HUB_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface|hf)\.co/(.+)", re.IGNORECASE)
KINDS = {"models": "hf://", "model": "hf://", "datasets": "hf://datasets/", "dataset": "hf://datasets/"}
PATHS = ("tree", "blob", "resolve", "raw")  # before the revision in the address of a page
FILE = re.compile(r"\.(?:jsonl?|ndjson|csv|tsv|parquet|arrow|txt|gguf|safetensors)(?:\.gz)?$", re.IGNORECASE)
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+-]*):/")
SPLIT = re.compile(r"[^\[]+(?:\[(-?[0-9]+)?(%?):(-?[0-9]+)?(%?)\])?")


def sources_of(document: Json) -> Iterator[tuple[str, Json]]:
    """Every source of rows with its pointer, as far as the document has that shape."""
    data = document.get("data")
    if not isinstance(data, dict):
        return
    for place, sources in (("/data/train", data.get("train")), ("/data/held_out/sources", held_out_sources(data))):
        for index, source in enumerate(sources if isinstance(sources, list) else ()):
            yield f"{place}/{index}", source


def beside_sources_of(document: Json) -> Iterator[tuple[str, Json]]:
    """The same of the general rows that are mixed in, and of those on which forgetting is measured."""
    for section, key in (("data", "replay"), ("evaluation", "forgetting")):
        part = document.get(section)
        about = part.get(key) if isinstance(part, dict) else None
        sources = about.get("sources") if isinstance(about, dict) else None
        for index, source in enumerate(sources if isinstance(sources, list) else ()):
            yield f"/{section}/{key}/sources/{index}", source


def held_out_sources(data: Json) -> Any:
    """Those that the section `data` names; none where held-out rows are drawn, or there are none."""
    held_out = data.get("held_out")
    return held_out.get("sources", []) if isinstance(held_out, dict) else []


def address_faults(uri: str, pointer: str, hub: str) -> Iterator[Fault]:
    """Scheme and shape of an address; `hub` is the Hub's prefix that fits here, or empty where none does."""
    expected = f"{hub}org/name, s3://bucket/prefix or a path" if hub else "s3://bucket/prefix or a path"
    scheme, separator, rest = uri.partition("://")
    if uri.strip() != uri or printable(uri) != uri:
        yield Fault(
            "an address has no spaces around it and no control characters",
            where=pointer,
            found=show(uri),
            expected=expected,
        )
    elif not separator:
        if slip := SCHEME.match(uri):
            hint = f"Write {slip[1].lower()}:// with two slashes, or ./{uri} for a path"
            yield Fault("not an address the job can read", where=pointer, found=show(uri), expected=expected, hint=hint)
        elif hint := _meant(uri, hub):
            yield Fault("not an address the job can read", where=pointer, found=show(uri), expected=expected, hint=hint)
    elif scheme == "s3":
        yield from _s3(rest, uri, pointer, expected)
    elif scheme == "hf" and not hub:
        yield Fault("a Hub address does not fit here", where=pointer, found=show(uri), expected=expected)
    elif not uri.startswith(hub or "s3://") or not _hub(uri.removeprefix(hub)):
        yield Fault(
            "not an address the job can read", where=pointer, found=show(uri), expected=expected, hint=_meant(uri, hub)
        )


def _s3(rest: str, uri: str, pointer: str, expected: str) -> Iterator[Fault]:
    bucket, _, key = rest.partition("/")
    if not BUCKET.fullmatch(bucket):
        yield Fault(
            "not an address the job can read",
            where=pointer,
            found=show(uri),
            expected=expected,
            hint="The bucket's name comes after s3://",
        )
    elif any(part in ("", ".", "..") for part in key.rstrip("/").split("/")) and key.rstrip("/"):
        yield Fault("a key holds no empty part, no . and no ..", where=pointer, found=show(uri), expected=expected)


def _hub(name: str) -> bool:
    return bool(HUB.fullmatch(name)) and "--" not in name.partition("@")[0] and ".." not in name


def hub_name(text: str) -> bool:
    """Whether `text`, which would be taken as a path, has the form of org/name and of no file."""
    return _hub(text) and not FILE.search(text)


def _meant(uri: str, hub: str) -> str:
    """What an address that begins otherwise was to say."""
    if hub and (page := HUB_PAGE.fullmatch(uri)):
        return _meant_at_hub(page[1], hub, "hf://")
    scheme, _, name = uri.partition("://")
    if scheme == "hf" and hub:
        return _meant_at_hub(name, hub, hub)
    in_capitals = name and scheme.lower() in ("hf", "s3") and scheme != scheme.lower()
    return "Write the scheme in lower case" if in_capitals else ""


def _meant_at_hub(path: str, hub: str, unsaid: str) -> str:
    """Of what follows the Hub's scheme or host. Without a kind it is one of `unsaid`."""
    kind, _, after = path.partition("/")
    said = KINDS.get(kind.lower())
    name, at, revision = (after if said else path).partition("@")
    owner, *rest = [part for part in name.split("/") if part] or [""]
    if rest[1:3] and rest[1] in PATHS and not at:
        at, revision = ("@", rest[2]) if rest[2:] and rest[2] != "main" else ("", "")
    if (said or unsaid) != hub:
        return f"This is the address of a {'model' if hub != 'hf://' else 'data set'}"
    if not rest and re.fullmatch(HUB_WORD, owner):
        return f"Write its owner, too, as its page on the Hub has it: {hub}OWNER/{owner}{at}{revision}"
    meant = "/".join([owner, *rest[:1]]) + at + revision
    if not _hub(meant):
        return ""
    more = " A repository has an owner and a name" if rest[1:] and rest[1] not in PATHS else ""
    return f"Did you mean {hub}{meant}?{more}"


def source_faults(pointer: str, source: Json) -> Iterator[Fault]:
    yield from address_faults(source["source"], f"{pointer}/source", "hf://datasets/")
    yield from _split(source.get("split", "train"), f"{pointer}/split")
    shape = source["format"]
    if shape == "template" and "template" not in source:
        yield Fault(
            "format template needs the Jinja of each turn",
            where=f"{pointer}/template",
            expected="user and assistant",
            hint='Write "template": {"user": "{{ COLUMN }}", "assistant": "{{ COLUMN }}"}, or another format',
        )
    if shape != "template" and "template" in source:
        yield Fault(
            "this section belongs to format template",
            where=f"{pointer}/template",
            found=f"format {shape}",
            expected="no template section",
        )
    if "subset" in source and not source["source"].startswith("hf://"):
        yield Fault(
            "only Hub datasets have subsets",
            where=f"{pointer}/subset",
            found=show(source["subset"]),
            expected="no subset",
        )
    for column in source.get("columns", {}):
        if column not in FORMATS[shape].columns:
            allowed = ", ".join(FORMATS[shape].columns) or "no columns section: the template names the columns"
            yield Fault(
                f"format {shape} has no such column",
                where=f"{pointer}/columns/{column}",
                found=column,
                expected=allowed,
            )
    yield from _rejected(source.get("columns", {}), f"{pointer}/columns")


def _rejected(columns: Json, pointer: str) -> Iterator[Fault]:
    """What the other half of preference data is called: an answer that must not be learned."""
    for name, column in columns.items():
        if name != "rejected" and re.match(r"rejected(?![a-z])", column, re.IGNORECASE):
            yield Fault(
                "rejected answers of preference data are not to be learned",
                where=f"{pointer}/{name}",
                found=show(column),
                expected="the column of the good answers, such as chosen",
            )


def _split(split: str, pointer: str) -> Iterator[Fault]:
    """Slices that the pattern of the schema lets through and that select nothing."""
    parts = SPLIT.fullmatch(split)
    start, start_unit, stop, stop_unit = parts.groups() if parts else (None, "", None, "")
    for bound, unit in ((start, start_unit), (stop, stop_unit)):
        if bound and unit and abs(int(bound)) > 100:
            yield Fault("a part of more than 100 %", where=pointer, found=show(split), expected="0 to 100 before %")
            return
    low = int(start or 0)
    same_unit = start is None or (start_unit or "") == (stop_unit or "")
    if stop is not None and same_unit and (low < 0) == (int(stop) < 0) and low >= int(stop):
        yield Fault("this slice holds no row", where=pointer, found=show(split), expected="a start before its end")


def held_out_is_not_train(document: Json) -> Iterator[Fault]:
    def rows(source: Json) -> tuple[str, str, str]:
        return source["source"], source.get("subset", ""), source.get("split", "train")

    beside = list(beside_sources_of(document))
    replayed = [source for pointer, source in beside if pointer.startswith("/data/")]
    trained = {rows(source) for source in [*document["data"]["train"], *replayed]}
    measured = [(pointer, source) for pointer, source in sources_of(document) if pointer.startswith("/data/held_out/")]
    measured += [(pointer, source) for pointer, source in beside if not pointer.startswith("/data/")]
    for pointer, source in measured:
        if rows(source) in trained:
            expected = "other rows than those that are trained on"
            yield Fault(
                "rows that are measured must not be trained on",
                where=pointer,
                found=show(source["source"]),
                expected=expected,
                hint="Use another split or slice",
            )
