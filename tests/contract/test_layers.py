"""What keeps the package one-way, light to import, and short enough to read: rules over its syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "job"
FILES = {path.relative_to(JOB).with_suffix("").as_posix().replace("/", "."): path for path in sorted(JOB.rglob("*.py"))}
# Each may import those before it, and none after it. A rule below orders the modules of a package among themselves.
ORDER = (
    "errors", "host", "weights", "gguf", "tracking.record", "tracking.wandb", "tracking.mlflow", "tracking.trackio",
    "tracking", "evaluation.metrics", "evaluation.judge_words", "evaluation.judge_endpoint", "evaluation.judge_scores",
    "export.kinds", "data.worker.json_text", "data.worker.messages", "data.worker.examples",
    "data.worker.preference", "data.worker.shape", "training.methods", "spec", "store", "ledger", "hub", "source",
    "data", "evaluation", "plan", "tracking.follow", "seen", "training", "report", "follow", "context", "export",
    "publish", "chat", "preview", "reference", "opinions", "member", "asked", "several", "tuning", "delivery", "run",
    "helping", "render", "init", "arguments", "commands", "__main__",
)  # fmt: skip
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "unsloth", "unsloth_zoo", "bitsandbytes",
         "huggingface_hub", "boto3", "botocore", "pyarrow", "numpy",
         "tokenizers", "accelerate", "safetensors", "pandas"}  # fmt: skip
# Modules that are themselves imported late: in worker processes that do nothing else, or once the trainer is there.
IMPORTED_LATE = {
    "data.worker.__main__": {"jinja2", "tokenizers", "numpy"},
    "training.callbacks": {"transformers"},
    "training.saver": {"transformers", "safetensors"},
    **{
        f"training.kernels.{name}": {"torch"}
        for name in ("check", "gated", "gating", "layers", "projections", "reference", "triton_kernels")
    },
}
# The last resorts, of the job and of its children, what a tracker's library and a reward of one's own raise, the one
# place that keeps the evidence of a failure before it goes on, and where a panic in Rust comes out, no Exception.
CATCHES_ALL = {
    "__main__",
    "run",
    "host.child",
    "tracking.follow",
    "data.tokenizer",
    "data.worker.tokenise",
    "training.methods.rewards",
}
FILE_LINES = 300
FUNCTION_LINES = 60


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text("utf-8"))


@cache
def nodes(module: str) -> list[ast.AST]:
    return list(ast.walk(tree(module)))


def layer(module: str) -> str:
    """The longest entry of `ORDER` that the module is in."""
    parts = module.split(".")
    return next((name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in ORDER), parts[0])


def imports(node: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Each import statement below `node` with the full names it brings in."""
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            yield from ((statement, alias.name) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "imports are absolute"
            yield statement, statement.module or ""
            yield from ((statement, f"{statement.module}.{alias.name}") for alias in statement.names)


def roots(found: Iterable[tuple[ast.stmt, str]]) -> set[str]:
    """The packages that these imports bring in."""
    return {name.split(".")[0] for _, name in found}


def ours(name: str) -> str | None:
    """The module of job/ that `name` means, if any."""
    if not name.startswith("job."):
        return None
    inner = name.removeprefix("job.")
    return next((known for known in (inner, f"{inner}.__init__") if known in FILES), None)


def that_run(module: ast.Module, in_functions: bool = True) -> Iterator[tuple[ast.stmt, str]]:
    """Imports not for type checkers alone; without `in_functions`, those that run with the module's own import."""
    stack: list[ast.AST] = list(module.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not in_functions:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        stack += ast.iter_child_nodes(node)


def test_every_folder_is_installed() -> None:
    """An editable install finds folders that a wheel, and so the image, would lack."""
    listed = tomllib.loads((JOB.parent / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(JOB.parent).parts) for path in JOB.rglob("__init__.py")}
    assert set(listed) == found | {"job.k8s", "job.schemas"}


def test_the_map_lists_the_folders_in_their_order() -> None:
    listed = re.findall(r"^\| `([a-z/]+)/` \|", (JOB / "README.md").read_text("utf-8"), re.MULTILINE)
    folders = [name for name in ORDER if (JOB / name / "__init__.py").is_file()]
    assert [name for name in listed if "/" not in name] == folders


def test_every_module_has_its_layer() -> None:
    assert {layer(module) for module in FILES} - {"__init__"} <= set(ORDER)


def test_imports_go_one_way() -> None:
    assert list(imports(tree("__init__"))) == []
    known = [(module, ours(name)) for module in FILES for _, name in imports(tree(module))]
    across = [(module, target) for module, target in known if target and layer(target) != layer(module)]
    assert [pair for pair in across if ORDER.index(layer(pair[1])) >= ORDER.index(layer(pair[0]))] == []


def test_no_class_name_is_there_twice() -> None:
    """Whoever looks for a public class by its name finds one."""
    places = [(node.name, module) for module in FILES for node in tree(module).body if isinstance(node, ast.ClassDef)]
    by_name = {
        name: [module for other, module in places if other == name] for name, _ in places if not name.startswith("_")
    }
    assert {name: modules for name, modules in by_name.items() if len(modules) > 1} == {}


def test_packages_have_no_rings() -> None:
    """Among the modules of one package, too, nothing imports what imports it."""
    needs = {module: {ours(name) for _, name in that_run(tree(module))} - {None, module} for module in FILES}
    done: set[str | None] = set()
    while ready := {module for module, wanted in needs.items() if module not in done and wanted <= done}:
        done |= ready
    assert set(needs) - done == set()


def test_only_the_backend_knows_unsloth() -> None:
    importers = {module for module in FILES if roots(imports(tree(module))) & {"unsloth", "unsloth_zoo"}}
    assert importers == {"training.backend"}


# What is outside the processes where a template from outside runs may know of them: how messages and rows look.
BEFORE_THE_BOUNDARY = {f"data.worker.{name}" for name in ("wire", "shape", "messages", "options", "json_text")}


def test_only_the_worker_sees_a_template() -> None:
    outside = [
        (module, name) for module in FILES if not module.startswith("data.worker.") for _, name in imports(tree(module))
    ]
    assert [module for module, name in outside if name.split(".")[0] == "jinja2"] == []
    known = {(module, ours(name) or "") for module, name in outside}
    inner = {pair for pair in known if pair[1].startswith("data.worker.")}
    assert {pair for pair in inner if pair[1] not in BEFORE_THE_BOUNDARY | {"data.worker.__init__"}} == set()


def test_nothing_heavy_is_imported_at_once() -> None:
    heavy = {module: roots(that_run(tree(module), in_functions=False)) & HEAVY for module in FILES}
    assert {module: names for module, names in heavy.items() if not names <= IMPORTED_LATE.get(module, set())} == {}


@pytest.mark.parametrize("module", [module for module in IMPORTED_LATE if module in FILES])
def test_what_is_imported_late_is_imported_inside_functions_only(module: str) -> None:
    for importer in FILES:
        at_once = (
            {ours(name) for _, name in that_run(tree(importer), in_functions=False)}
            if importer not in IMPORTED_LATE
            else set()
        )
        assert module not in at_once, f"{importer} imports {module} at once"


def test_only_the_last_resort_catches_all() -> None:
    for module in FILES:
        for node in nodes(module):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{module}:{node.lineno}: bare except"
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                names = {ast.unparse(name) for name in caught}
                assert module in CATCHES_ALL or not names & {"Exception", "BaseException"}, f"{module}:{node.lineno}"


def functions() -> dict[str, int]:
    """The lines of every function of the package, by its place."""
    return {
        f"{module}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module in FILES
        for node in nodes(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_files_and_functions_fit_their_page() -> None:
    files = {module: len(path.read_text("utf-8").splitlines()) for module, path in FILES.items()}
    assert {module: lines for module, lines in files.items() if lines > FILE_LINES} == {}
    assert {place: lines for place, lines in functions().items() if lines > FUNCTION_LINES} == {}


def test_most_functions_fit_a_screen() -> None:
    lengths = sorted(functions().values())
    assert lengths[int(len(lengths) * 0.9)] <= 35


def test_the_command_imports_nothing_heavy() -> None:
    program = f"import sys, job.__main__, job.spec; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
