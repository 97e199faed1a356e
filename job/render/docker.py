"""A shell script that runs the job with docker or podman: everything of the pod that a container engine knows.

Paths of this machine are mounted where the spec expects them, relative ones below the container's working directory.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from job.errors import InputError, SpecError
from job.host.memory import GIB
from job.render.image import is_local, words_here
from job.render.pod import GRACE_SECONDS, STOP_SECONDS, UID
from job.render.rendering import Rendering, local_paths
from job.render.shell import SHELLCHECK, environment_words, variables
from job.render.text import comment, word
from job.spec.wording import show

HERE = "/here"
CA_BUNDLE = "/etc/tunejob/ca.pem"
GPU = {"docker": '--gpus "${TUNEJOB_GPUS:-all}"', "podman": "--device nvidia.com/gpu=all --security-opt label=disable"}


def docker(task: Rendering) -> str:
    return _file(task, "docker")


def podman(task: Rendering) -> str:
    return _file(task, "podman")


def _file(task: Rendering, engine: str) -> str:
    header = [
        f"sh FILE        more options of {engine} run may follow; exit status 0, or the code of the failure (README, Exit codes)",  # noqa: E501
        *environment_words(task.spec),
        *words_here(task.options.image, engine, task.options.image_with),
        *task.needs.words(),
        SHELLCHECK,
    ]
    return "#!/bin/sh\n" + comment(header) + script(task, engine)


def script(task: Rendering, engine: str) -> str:
    """POSIX shell; ends with the exit code of the job."""
    needs = task.needs
    options = [
        f"--rm --interactive --name {task.name}",
        GPU[engine].replace("-all", f"-{needs.gpus}") if needs.gpus > 1 else GPU[engine],
        "--read-only --cap-drop ALL --security-opt no-new-privileges --volume /scratch --volume /tmp",
        f"--memory {needs.memory_bytes // GIB}g --shm-size {needs.shm_bytes // GIB}g",
        f"--stop-timeout {GRACE_SECONDS} --env TUNEJOB_STOP_SECONDS={STOP_SECONDS} --env AWS_EC2_METADATA_DISABLED=true",  # noqa: E501
    ]
    if task.options.cpu:
        options.append(f"--cpus {task.options.cpu}")
    if is_local(task.options.image):
        options.append("--pull never")  # whoever took that name at a public registry is not asked
    lines = [
        "set -eu",
        *_mounts(task, engine),
        f"for name in {' '.join(variables(task.spec))}; do",
        '  [ -z "$(printenv "$name")" ] || set -- --env "$name" "$@"',
        "done",
        f'[ -z "${{AWS_CA_BUNDLE:-}}" ] || set -- --volume "$AWS_CA_BUNDLE:{CA_BUNDLE}:ro" --env AWS_CA_BUNDLE={CA_BUNDLE} "$@"',  # noqa: E501
        f"printf %s {word(task.text)} |",
        f"  {engine} run " + " \\\n    ".join([*options, f'"$@" {task.options.image} run -']),
    ]
    return "\n".join(lines) + "\n"


def _mounts(task: Rendering, engine: str) -> Iterator[str]:
    """What is read must be there; what is written is made, and the container writes as the script's user."""
    paths = local_paths(task.spec)
    if not paths:
        return
    yield f'set -- --workdir {HERE} "$@"'
    mounted: set[str] = set()  # engines refuse a place twice
    for pointer, path in sorted(paths.items(), key=lambda item: not _written(item[0])):
        source, target = _source(pointer, path), posixpath.normpath(posixpath.join(HERE, path))
        if _written(pointer):
            yield f"mkdir -p {source}"
        else:
            yield f"[ -e {source} ] || {{ printf '%s\\n' {word(f'{pointer}: not here: {show(path)}')} >&2; exit {InputError.exit_code}; }}"  # noqa: E501
        if target not in mounted:
            yield f'set -- --volume {source}:{word(target)}{"" if _written(pointer) else ":ro"} "$@"'
        mounted.add(target)
    if any(map(_written, paths)):
        own = 'set -- --user "$(id -u):0" "$@"'
        rootless = f'[ "$(id -u)" = 0 ] || set -- --userns keep-id:uid={UID},gid=0 "$@"'
        yield own if engine == "docker" else rootless


def _written(pointer: str) -> bool:
    return pointer.startswith("/output/")


def _source(pointer: str, path: str) -> str:
    """As one shell word; a colon would end it for the engine."""
    if ":" in path:
        raise SpecError("a container engine cannot mount a path with a colon", where=pointer, found=show(path))
    return word(path) if path.startswith("/") else f'"$PWD"/{word(path)}'
