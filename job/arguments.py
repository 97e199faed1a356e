"""The command's arguments: what `tunejob --help` prints."""

from __future__ import annotations

import argparse
from typing import Any

from job import __version__
from job.errors import Fault, SpecError

LONGEST_SECONDS = 1e6
LONGEST_ANSWER = 1 << 16  # tokens
RENDER_TARGETS = (
    "docker",
    "podman",
    "compose",
    "job",
    "kueue",
    "jobset",
    "trainjob",
    "skypilot",
    "dstack",
    "actions",
)


EXAMPLES = {  # two of each command
    "": ("tunejob validate spec.json", "tunejob run spec.json"),
    "validate": ("tunejob validate spec.json", "cat spec.json | tunejob validate -"),
    "run": ("tunejob run spec.json", "tunejob run s3://bucket/spec.json --workdir /scratch --log json"),
    "verify": ("tunejob verify my-run", "tunejob verify s3://models/my-run"),
    "report": ("tunejob report my-run", "tunejob report s3://models/my-run > report.md"),
    "chat": ("tunejob chat my-run", 'tunejob chat s3://models/my-run --gguf q4_k_m --prompt "Turn on the fan."'),
    "wait": ("tunejob wait my-run-0123456789", 'sky jobs launch task.yaml --yes | tunejob wait - --summary "$GITHUB_STEP_SUMMARY"'),  # noqa: E501
    "schema": ("tunejob schema", "tunejob schema > job.schema.json"),
    "render": ("tunejob render spec.json --to docker -o run.sh", "tunejob render spec.json --to job --parameters 8b -o job.yaml"),  # noqa: E501
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Wrong usage is a wrong spec of what to do: exit 10, not argparse's 2. Its help ends with two examples."""

    def __init__(self, **options: Any) -> None:
        lines = EXAMPLES.get(options["prog"].partition(" ")[2], ())
        epilog = "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else None
        super().__init__(**options, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> Any:
        raise SpecError(Fault(message, hint=f"See: {self.prog} --help"))


def seconds(text: str) -> float:
    if not 0 < float(text) <= LONGEST_SECONDS:
        raise ValueError
    return float(text)


def tokens(text: str) -> int:
    if not 0 < int(text) <= LONGEST_ANSWER:
        raise ValueError
    return int(text)


def parser() -> argparse.ArgumentParser:
    main_parser = Parser(prog="tunejob", description="One JSON spec in, a proven fine-tuned model out.")
    main_parser.add_argument("--version", action="version", version=f"tunejob {__version__}")
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    spec_help = "path of the spec, - for standard input, or s3://bucket/key"
    validate = commands.add_parser("validate", help="check a spec: every fault, in under a second, without a GPU")
    validate.add_argument("spec", metavar="SPEC", help=spec_help)
    run = commands.add_parser("run", help="run the job: fetch, train, evaluate, publish")
    run.add_argument("spec", metavar="SPEC", help=spec_help)
    run.add_argument("--workdir", help="scratch directory, kept afterwards (default: TUNEJOB_WORKDIR, else temporary)")
    verify = commands.add_parser("verify", help="hash every file of a published run again")
    verify.add_argument("output", metavar="OUTPUT", help="directory or s3://bucket/prefix of a run")
    report = commands.add_parser("report", help="print the report of a run, Markdown")
    report.add_argument("output", metavar="OUTPUT", help="directory or s3://bucket/prefix of a run")
    add_chat(commands)
    wait = commands.add_parser(
        "wait", help="follow a Kubernetes Job with kubectl, or a log, to its end; exit with its code"
    )
    wait.add_argument(
        "job", metavar="JOB", help="name of the Job, jobset/NAME, trainjob/NAME, or - for a log on standard input"
    )
    wait.add_argument("--namespace", help="of the Job (default: the context's)")
    wait.add_argument(
        "--summary", metavar="FILE", help="append outcome and report as Markdown, such as $GITHUB_STEP_SUMMARY"
    )
    wait.add_argument("--poll-seconds", type=seconds, default=5.0, help="between two looks at the cluster (default: 5)")
    wait.add_argument(
        "--patience-seconds",
        type=seconds,
        default=300.0,
        help="for how long a cluster that is silent, or refuses what it allowed before, is asked again (default: 300)",
    )
    commands.add_parser("schema", help="print the JSON Schema of a spec")
    add_render(commands, spec_help)
    for command in (validate, run, verify, wait):
        command.add_argument(
            "--log",
            choices=("auto", "json", "text"),
            default="auto",
            help="JSON lines, or lines for people (default: JSON unless on a terminal)",
        )
    return main_parser


def add_chat(commands: Any) -> None:
    chat = commands.add_parser("chat", help="ask what a run has made: a conversation, or an answer for each line")
    chat.add_argument("output", metavar="OUTPUT", help="directory or s3://bucket/prefix of a run")
    which = chat.add_mutually_exclusive_group()
    which.add_argument(
        "--gguf", nargs="?", const="", metavar="TYPE",
        help="ask the GGUF of this type, or the first (default: the merged weights, else the adapter on its base)",
    )  # fmt: skip
    which.add_argument("--base", action="store_true", help="ask the base, untuned")
    chat.add_argument(
        "--max-new-tokens", type=tokens, metavar="N", help="of an answer (default: the run's evaluation.max_new_tokens)"
    )
    chat.add_argument(
        "--workdir", help="for what is fetched, kept for the next time (default: TUNEJOB_WORKDIR, else none)"
    )
    chat.add_argument("--base-from", metavar="PLACE", help="where the base is now, if it is not where it was")
    chat.add_argument(
        "--prompt", metavar="TEXT", help="answer this and end; else each line of a standard input that is piped"
    )


def add_render(commands: Any, spec_help: str) -> None:
    render = commands.add_parser("render", help="write the file that runs a spec elsewhere, resources filled in")
    render.add_argument("spec", metavar="SPEC", help=spec_help)
    render.add_argument("--to", required=True, choices=RENDER_TARGETS, help="where it shall run")
    render.add_argument("-o", "--output", metavar="FILE", help="where to write (default: standard output)")
    render.add_argument("--image", help="reference of the image (default: that of this version)")
    render.add_argument("--name", help="of the job, before its hash (default: the spec's)")
    render.add_argument("--namespace", help="of Kubernetes (default: the context's)")
    render.add_argument("--queue", default="tunejob", help="LocalQueue, for kueue (default: tunejob)")
    render.add_argument(
        "--parameters", metavar="SIZE", help="weights of the base model, such as 8b (default: from its files or name)"
    )
    render.add_argument("--gpus", type=int, default=1, help="1; more come in a later version")
