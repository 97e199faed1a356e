"""One spec to be rendered: its bytes, what it says, what it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from job.errors import Fault, SpecError
from job.plan.machine import Resources, resources
from job.plan.model_size import model_size
from job.render.deadline import Deadline
from job.render.options import RenderOptions, job_name
from job.spec import JobSpec, parse_spec
from job.spec.sections import places_of
from job.spec.wording import show

READ = ("s3:// or hf://", "Copy it to a bucket (`aws s3 cp`) and name that address")
WRITTEN = (
    "s3://",
    "The machine that runs it is gone afterwards: write to a bucket, which `tunejob report` and `chat` read",
)
BUILT_IN = ("an absolute path of the image", "Build the file into the image")
HERE = "or render with `--to docker`, which mounts paths on this machine"


@dataclass(frozen=True)
class Rendering:
    """`text` is the spec as it was given: it travels byte for byte. `name` is that of the job, with the spec's hash."""

    text: str
    spec: JobSpec
    options: RenderOptions
    needs: Resources
    name: str

    @property
    def cores(self) -> int:
        """Of a machine of its own: one is the system's, unless they were chosen."""
        return self.options.cpu or self.needs.cpu_request + 1

    @property
    def deadline(self) -> Deadline:
        return self.options.deadline or Deadline()


def context(raw: bytes, options: RenderOptions) -> Rendering:
    """Raises `SpecError` for a spec that is not valid, `CapacityError` for one that fits no GPU."""
    spec = parse_spec(raw)
    require_plan_of(spec, options)
    needs = resources(spec, model_size(spec, options.parameters), gpus_of(spec, options.gpus))
    if options.cpu:
        needs = replace(needs, cpu_request=options.cpu, cpu_limit=options.cpu)
    return Rendering(raw.decode(), spec, options, needs, job_name(spec, raw, options.name))


def require_plan_of(spec: JobSpec, options: RenderOptions) -> None:
    """Raises `SpecError` where the deadline is by the plan of another spec."""
    planned = options.deadline.run_id if options.deadline else ""
    if planned and planned != spec.run_id:
        hint = "Plan again: `tunejob plan spec.json --json > plan.json`"
        raise SpecError("the plan is that of another spec", where="--deadline", found=f"run {planned}",
                        expected=f"run {spec.run_id}", hint=hint)  # fmt: skip


def gpus_of(spec: JobSpec, chosen: int | None) -> int:
    """The spec's, or those that were `chosen` for a spec that takes all. Raises `SpecError` for another number than the
    spec's: it travels as it is.
    """
    gpus = spec.resources.gpus
    if gpus == "all" or chosen in (None, gpus):
        return chosen or spec.resources.known_gpus
    hint = f'Write "resources": {{"gpus": {chosen}}} in the spec, or "all" there'
    raise SpecError("the spec wants another number of GPUs", where="/resources/gpus", found=f"--gpus {chosen}",
                    expected=str(gpus), hint=hint)  # fmt: skip


def local_paths(spec: JobSpec) -> dict[str, str]:
    """Pointer → path of everything that the spec reads or writes on this machine's disk."""
    places: dict[str, str | None] = {"/model/source": spec.model.source, "/model/merge_base": spec.model.merge_base}
    places |= dict(spec.model.given)
    places |= {f"{pointer}/source": source.source for source, pointer in spec.sources}
    places |= dict(places_of(spec.evaluation.tasks))
    places |= spec.training.grpo.files if spec.training.grpo else {}
    places |= {"/output/uri": spec.output.uri, "/output/checkpoints/uri": spec.output.checkpoints.uri}
    return {pointer: path for pointer, path in places.items() if path is not None and "://" not in path}


def require_remote(spec: JobSpec) -> None:
    """Raises `SpecError` for every path: the machine that runs the job does not have it, or loses it at the end. Of
    one's own rewards an absolute one may be the image's.
    """
    code = spec.training.grpo.files if spec.training.grpo else {}
    faults = [
        Fault("a path of this machine", where=pointer, found=show(path), expected=expected, hint=f"{hint}; {HERE}")
        for pointer, path in local_paths(spec).items()
        for expected, hint in [WRITTEN if pointer.startswith("/output/") else BUILT_IN if pointer in code else READ]
        if not (pointer in code and path.startswith("/"))
    ]
    if faults:
        raise SpecError(*faults)


def require_gpus(task: Rendering) -> None:
    """Raises `SpecError` where the file has to say how many GPUs it asks for, and nobody does."""
    if task.spec.resources.gpus == "all" and task.options.gpus is None:
        raise SpecError("the file has to say how many GPUs it asks for", where="/resources/gpus", found='"all"',
                        expected="--gpus COUNT, or a number in the spec")  # fmt: skip
