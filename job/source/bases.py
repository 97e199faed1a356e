"""The models that a spec names: the base, and the 16-bit base that is merged into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from job.errors import InputError
from job.source.given_adapter import FetchedAdapter, fetch_adapter, require_base, require_rank
from job.source.model import FetchedModel, check_merge_base, fetch_model_config
from job.spec import JobSpec


def fetch_bases(
    spec: JobSpec,
    workdir: Path,
    check: Callable[[Path, str], None],
    revisions: Mapping[str, str] = MappingProxyType({}),
) -> tuple[FetchedModel, FetchedModel]:
    """Configs of the base and of the 16-bit base that is merged into: the same, unless the spec names another. `check`
    looks at each folder, with its model's place in the spec. With the base come its adapters.

    Raises as `fetch_model_config` does, and `InputError` where what the spec exports needs another base.
    """
    base = fetch_model_config(spec.model.source, workdir, revisions=revisions)
    check(base.path, base.pointer)
    base = replace(base, adapters=tuple(_adapters(spec, base, workdir, revisions)))
    if spec.model.merge_base is not None:
        merge_base = fetch_model_config(spec.model.merge_base, workdir, "/model/merge_base", revisions)
        check_merge_base(base, merge_base)
        check(merge_base.path, merge_base.pointer)
        return base, merge_base
    if base.quantised and spec.needs_merge:
        raise InputError(
            "exports need the 16-bit weights that this base was quantised from",
            where="/model/merge_base",
            found=f"{base.public_id}, quantised",
            expected="the address of its 16-bit model",
        )
    return base, base


def _adapters(
    spec: JobSpec, base: FetchedModel, workdir: Path, revisions: Mapping[str, str]
) -> Iterator[FetchedAdapter]:
    """Each that the spec names for the base, of that base and with the settings that the spec has."""
    if spec.lora is None:
        return
    found = []
    for pointer, address in spec.model.given:
        one = fetch_adapter(address, spec.lora, workdir, revisions, pointer, spec.model.adapters is not None)
        require_base(one, base.public_id, base.revision)
        found.append(one)
    if spec.model.combine:
        require_rank([one.rank for one in found], spec.model.combine.method, spec.lora.r)
    yield from found
