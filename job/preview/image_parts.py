"""What an image of tunejob has, and what a spec needs beside that: `validate` notes it, `render` refuses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from job.errors import Fault
from job.spec import JobSpec
from job.tracking import IN_IMAGE

PARTS = {"benchmarks": "BENCHMARKS", "trackers": "TRACKERS"}  # and the build argument that puts it into the image
VLLM = "vllm"  # is in an image only where somebody has put it there


def missing(spec: JobSpec, parts: Sequence[str]) -> Iterator[Fault]:
    """What the spec needs of an image that is built with these `parts`, and a run would refuse there."""
    trackers = [name for name in spec.tracking if name not in IN_IMAGE]
    tasks = [task.name for task in spec.evaluation.tasks or ()]
    for part, pointer, wanted in (("trackers", "/tracking", trackers), ("benchmarks", "/evaluation/tasks", tasks)):
        if wanted and part not in parts:
            yield Fault(
                f"the plain image lacks the packages for {', '.join(wanted)}",
                where=pointer,
                found=", ".join(wanted),
                expected=f"an image that is built with --build-arg {PARTS[part]}=1",
                hint=f"Build it so and add --image-with {part}, or leave it out of the spec",
            )
    if spec.training.grpo and spec.training.grpo.use_vllm and VLLM not in parts:
        yield Fault(
            "no image of tunejob has vLLM",
            where="/training/grpo/use_vllm",
            found="true",
            expected="an image of your own that has it, made from one of tunejob's",
            hint=f"Name it with --image and add --image-with {VLLM}, or leave use_vllm out of the spec",
        )
