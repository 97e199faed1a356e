"""A run on a CPU that makes its first GGUF types as one on a GPU does: right after the conversion, beside the
comparison of the merge, two side by side.
"""

from __future__ import annotations

from collections.abc import Mapping

from job.__main__ import main
from job.export import artefacts
from job.plan import steps
from job.spec import JobSpec


def run(*arguments: str) -> int:
    def made_early(spec: JobSpec, sizes: Mapping[str, int], own_type: str, at_once: int, on_cpu: bool) -> list[str]:
        return steps.made_early(spec, sizes, own_type, at_once, on_cpu=False)

    vars(artefacts).update(made_early=made_early, parallel_quants=lambda *_: 2)
    return main(list(arguments))
