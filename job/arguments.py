"""The command's arguments: what `tunejob --help` prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from job import __version__
from job.errors import SpecError
from job.plan.cards import CARDS

Number = TypeVar("Number", int, float)
LONGEST_SECONDS = 1e6
MOST_GIB = 1e4
MOST_ROWS = 10**12
HIGHEST_PRICE = 1e6
LONGEST_ANSWER = 1 << 16  # tokens
RUN_HELP = "directory or s3://bucket/prefix of a run; PLACE/latest: of the runs below PLACE the one published last"
IMAGE_PARTS = ("benchmarks", "trackers", "vllm")
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
    "": ("tunejob init rows.csv -o spec.json", "tunejob run spec.json"),
    "init": ("tunejob init rows.csv -o spec.json", "tunejob init hf://openai/gsm8k/main --model hf://Qwen/Qwen2.5-7B-Instruct --gpu 24 -o spec.json"),  # noqa: E501
    "validate": ("tunejob validate spec.json", "cat spec.json | tunejob validate -"),
    "plan": ("tunejob plan spec.json --price 2.49", "tunejob plan spec.json --sample 5000 --price h100=2.49,l4=0.7 --markdown"),  # noqa: E501
    "run": ("tunejob run spec.json", "tunejob run s3://bucket/spec.json --workdir /scratch --log json"),
    "verify": ("tunejob verify my-run", "tunejob verify s3://models/my-run"),
    "report": ("tunejob report my-run", "tunejob report s3://models/my-run --score-sheet scores.csv"),
    "compare": ("tunejob compare first-run second-run", "tunejob compare s3://models/a s3://models/b --by exact_match --price 2.49 --html compare.html"),  # noqa: E501
    "chat": ("tunejob chat my-run", 'tunejob chat s3://models/my-run --gguf q4_k_m --prompt "Turn on the fan."'),
    "wait": ("tunejob wait my-run-0123456789", 'sky jobs launch task.yaml --yes | tunejob wait - --summary "$GITHUB_STEP_SUMMARY"'),  # noqa: E501
    "schema": ("tunejob schema", "tunejob schema > job.schema.json"),
    "render": ("tunejob render spec.json --to docker -o run.sh", "tunejob render spec.json --to job --image registry.example.com/tunejob:0.1.0 --deadline 6 -o job.yaml"),  # noqa: E501
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Wrong usage is a wrong spec of what to do: exit 10, not argparse's 2. Its help ends with two examples."""

    def __init__(self, **options: Any) -> None:
        lines = EXAMPLES.get(options["prog"].partition(" ")[2], ())
        epilog = "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else None
        super().__init__(**options, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> Any:
        raise SpecError(message, hint=f"See: {self.prog} --help")


def number(name: str, kind: Callable[[str], Number], most: float) -> Callable[[str], Number]:
    """Reads what lies above zero, up to `most`; argparse calls it `name` where it refuses a text."""

    def read(text: str) -> Number:
        if not 0 < kind(text) <= most:
            raise ValueError
        return kind(text)

    read.__name__ = name
    return read


seconds, gib = number("seconds", float, LONGEST_SECONDS), number("gib", float, MOST_GIB)
tokens, count = number("tokens", int, LONGEST_ANSWER), number("count", int, MOST_ROWS)


def columns(text: str) -> dict[str, str]:
    """`instruction=Question,output=Answer` → what the format calls them: their names in the rows."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and column for name, _, column in pairs):
        raise ValueError
    return {name.strip(): column.strip() for name, _, column in pairs}


def prices(text: str) -> dict[str, float]:
    """`2.49` → that price for every GPU, under the name ""; `h100=2.49,l4=0.7` → a price for each."""
    found = {}
    for part in text.split(","):
        name, _, price = part.strip().rpartition("=")
        if name not in CARDS and (name or "," in text):
            raise argparse.ArgumentTypeError(f"{name or part!r} is not a GPU of the plan: {', '.join(CARDS)}")
        if not 0 <= float(price) <= HIGHEST_PRICE:
            raise ValueError
        found[name] = float(price)
    return found


def parser() -> argparse.ArgumentParser:
    main_parser = Parser(prog="tunejob", description="One JSON spec in, a proven fine-tuned model out.")
    main_parser.add_argument("--version", action="version", version=f"tunejob {__version__}")
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    spec_help = "path of the spec, - for standard input, or s3://bucket/key"
    add_init(commands)
    validate = commands.add_parser(
        "validate", help="check a spec and the files it names: every fault, in under a second, without a GPU"
    )
    validate.add_argument("spec", metavar="SPEC", help=spec_help)
    validate.add_argument(
        "--spec-only", action="store_true", help="do not look at files: the paths are another machine's"
    )
    add_plan(commands, spec_help)
    run = commands.add_parser("run", help="run the job: fetch, train, evaluate, publish")
    run.add_argument("spec", metavar="SPEC", help=spec_help)
    run.add_argument("--workdir", help="scratch directory, kept afterwards (default: TUNEJOB_WORKDIR, else temporary)")
    run.add_argument(
        "--replace",
        action="store_true",
        help="delete what runs have stored at the output, nothing else, and train anew; asks on a terminal",
    )
    verify = commands.add_parser("verify", help="hash every file of a published run again")
    verify.add_argument("output", metavar="OUTPUT", help=RUN_HELP)
    add_report(commands)
    add_compare(commands)
    add_chat(commands)
    wait = commands.add_parser(
        "wait", help="follow a Kubernetes Job with kubectl, or a log that is trusted, to its end; exit with its code"
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
    schema = commands.add_parser("schema", help="print the JSON Schema of a spec")
    schema.add_argument("-o", "--output", metavar="FILE", help="where to write (default: standard output)")
    add_render(commands, spec_help)
    for command in (validate, run, verify, wait):
        command.add_argument(
            "--log",
            choices=("auto", "json", "text"),
            default="auto",
            help="JSON lines, or lines for people (default: JSON unless on a terminal)",
        )
    return main_parser


def add_init(commands: Any) -> None:
    init = commands.add_parser(
        "init",
        help="look at rows and write the spec that fits them",
        description="Looks at rows, writes a spec for them, and says why it is as it is.",
    )
    init.add_argument(
        "rows", metavar="FILE", help="file or folder of rows, hf://owner/name[/subset], or s3://bucket/key"
    )
    init.add_argument("--model", help="base model: hf://owner/name or a folder (default: a small open one)")
    init.add_argument(
        "--gpu", type=gib, metavar="GIB", help="memory of the GPU that will train, such as 24 (default: this machine's)"
    )
    init.add_argument("-o", "--output", metavar="FILE", help="where to write (default: standard output)")
    init.add_argument("--force", action="store_true", help="write over a file that is there")
    init.add_argument("--name", help="of the run (default: that of the file)")
    init.add_argument("--split", default="train", help="of a data set (default: train)")
    init.add_argument(
        "--columns", type=columns, default={}, metavar="NAME=COLUMN,…",
        help="columns under other names than any format's, such as instruction=Frage,output=Antwort",
    )  # fmt: skip


def add_plan(commands: Any, spec_help: str) -> None:
    plan = commands.add_parser(
        "plan",
        help="say what a run will be like: rows, steps, memory, time, money; without a GPU and without torch",
        description="Reads the rows as a run would, and says what it needs and takes on each GPU. 13: it fits none.",
    )
    plan.add_argument("spec", metavar="SPEC", help=spec_help)
    form = plan.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as schemas/plan.schema.json has it")
    form.add_argument("--markdown", action="store_true", help="for a pull request")
    plan.add_argument(
        "--sample", type=count, metavar="N", help="read so many rows, drawn by training.seed (default: all of them)"
    )
    plan.add_argument(
        "--price", type=prices, default={}, metavar="PRICE",
        help=f"of an hour, such as 2.49; or by GPU, such as h100=2.49,l4=0.7 ({', '.join(CARDS)})",
    )  # fmt: skip
    plan.add_argument("--no-advice", dest="advice", action="store_false", help="leave advice out")


def add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="print the report of a run, Markdown; or let people score its answers")
    report.add_argument("output", metavar="OUTPUT", help=RUN_HELP)
    which = report.add_mutually_exclusive_group()
    which.add_argument(
        "--score-sheet",
        metavar="FILE",
        help="write a csv of its answers, base and tuned in an order that does not say which is which",
    )
    which.add_argument("--scores", metavar="FILE", help="read that csv, filled in: means and which is preferred")


def add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare", help="set runs beside each other: what differs, which is best, what it took"
    )
    compare.add_argument("outputs", metavar="OUTPUT", nargs="+", help="directories or s3://bucket/prefix of runs")
    compare.add_argument(
        "--by", metavar="METRIC", help="that decides which is best (default: the first that they have)"
    )
    compare.add_argument("--html", metavar="FILE", help="write a page for a browser as well, curves over each other")
    compare.add_argument("--json", action="store_true", help="as schemas/compare.schema.json has it")
    compare.add_argument(
        "--price", type=prices, default={}, metavar="PRICE",
        help="of an hour: 2.49, or by GPU h100=2.49,l4=0.7; without it that of each run's spec",
    )  # fmt: skip


def add_chat(commands: Any) -> None:
    chat = commands.add_parser("chat", help="ask what a run has made: a conversation, or an answer for each line")
    chat.add_argument("output", metavar="OUTPUT", help=RUN_HELP)
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
    render.add_argument(
        "--image", help="its reference in a registry (default: the one of this version that `docker build` makes here)"
    )
    render.add_argument(
        "--image-with", action="append", default=[], choices=IMAGE_PARTS,
        help="what it has beyond the plain image, for evaluation.tasks, tracking or use_vllm; may be repeated",
    )  # fmt: skip
    render.add_argument("--name", help="of the job, before its hash (default: the spec's)")
    render.add_argument("--cpu", type=int, metavar="CORES", help="cores it gets (default: by the exports)")
    render.add_argument(
        "--parameters", metavar="SIZE", help="weights of the base model, such as 8b (default: from its files or name)"
    )
    render.add_argument("--gpus", type=int, metavar="COUNT", help='of the machine, where resources.gpus is "all"')
    some = render.add_argument_group("for some targets", "the others refuse them")
    some.add_argument(
        "--deadline",
        metavar="HOURS|PLAN",
        help="for all tries together: hours, or what `plan --json` wrote (default: 24)",
    )
    some.add_argument("--namespace", help="of Kubernetes (default: the context's)")
    some.add_argument("--queue", help="LocalQueue of Kueue (default: tunejob)")
    some.add_argument("--pull-secret", metavar="NAME", help="Secret with the login of a private registry")
    some.add_argument(
        "--service-account", metavar="NAME",
        help="one that is there; with --annotation the file makes it (default: tunejob, which the file makes)",
    )  # fmt: skip
    some.add_argument(
        "--annotation", action="append", default=[], metavar="NAME=VALUE",
        help="of the service account, such as eks.amazonaws.com/role-arn=ARN; may be repeated",
    )  # fmt: skip
    some.add_argument(
        "--egress", action="append", default=[], metavar="CIDR:PORT",
        help="addresses the pod may reach besides public HTTPS, such as 10.0.0.0/8:9000; may be repeated",
    )  # fmt: skip
    some.add_argument(
        "--source", metavar="URL@COMMIT", help="git repository of tunejob from which a CI takes the command"
    )
