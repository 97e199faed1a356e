"""29 hostile templates: each is refused (exit 12) at its pointer, within the limit of its worker's processor time.

The job's own memory stays put.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from job.data.build import build_dataset
from job.data.pool import Worker
from job.data.tokenizer import load_tokenizer, write_tokenizer
from job.data.worker import sandbox, wire
from job.errors import JobError, PolicyError
from tests.data_rows import byte_tokenizer_dir, fetched, job_spec, turns, write_rows

ANSWERS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SECONDS = 1.0 + 4.0  # of the processor: the limit here, and a worker's start
GROWTH_BYTES = 50 << 20
SHIPPED_SECONDS, SHORT_SECONDS = 8.0, 1.0

CHAT_TEMPLATES = {
    "class of a string": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by filter": "{{ ''|attr('__class__') }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "builtins of cycler": "{{ cycler.__init__.__globals__ }}",
    "code of a generator": "{{ (messages|map('upper')).gi_frame }}",
    "format attribute": "{{ '{0.__class__}'.format(1) }}",
    "format_map attribute": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "format through a filter": "{{ ('{0.__' ~ 'class__}').format(messages) }}",
    "changing the row": "{{ messages.append(1) }}",
    "changing a message": "{{ messages[0].update({'role': 'system'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "from import": "{% from 'os' import system %}{{ system('true') }}",
    "extends": "{% extends 'base' %}",
    "huge range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "output bomb": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "string bomb": "{{ ('x' * (10 ** 10))|length }}",
    "list bomb": "{{ ([0] * (10 ** 10))|length }}",
    "doubling bomb": "{% set ns = namespace(t='x') %}{% for i in range(64) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "padding bomb": "{{ '%0*d' | format(10 ** 9, 1) }}",
    "endless loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "endless power": "{{ (10 ** (10 ** 10)) % 7 }}",
}
ROW_TEMPLATES = {
    "endless loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "class of a column": "{{ question.__class__ }}",
    "memory": "{{ question * (10 ** 10) }}",
}

BOMBS = ("output bomb", "string bomb", "list bomb", "doubling bomb", "padding bomb")

Outcome = tuple[JobError | None, float]


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def attempt(folder: Path, chat_template: str | None, user: str | None) -> Outcome:
    folder.mkdir()
    if user is None:
        rows, source, data = (
            [{"messages": turns("hi", "hello")}],
            {"format": "messages"},
            {"chat_template": f"{ANSWERS}{chat_template}"},
        )
    else:
        rows, source, data = (
            [{"question": "a"}],
            {"format": "template", "template": {"user": user, "assistant": "b"}},
            {},
        )
    path = write_rows(folder / "rows.jsonl", rows)
    spec = job_spec([{"source": str(path), **source}], **data)
    start = children_seconds()
    try:
        build_dataset(spec, fetched(spec, [path]), None, byte_tokenizer_dir(), folder, lambda done, total: None)
    except JobError as error:
        return error, children_seconds() - start
    return None, children_seconds() - start


class Watch(threading.Thread):
    """The most memory that this process (without its workers) has held while the thread ran."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.start_bytes = self.peak_bytes = psutil.Process().memory_info().rss

    def run(self) -> None:
        while not self.done.wait(0.05):
            self.peak_bytes = max(self.peak_bytes, psutil.Process().memory_info().rss)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[tuple[str, str], Outcome], Watch]:
    """All attacks, one after another: the bombs under watch, after harmless jobs that load what every job loads.

    With less time than ships (`test_the_limit_that_ships`), for that is what an endless one takes.
    """
    folder = tmp_path_factory.mktemp("templates")
    for number in range(3):
        assert attempt(folder / f"harmless {number}", "", None)[0] is None
    watch = Watch()
    attacks = [("chat", name) for name in CHAT_TEMPLATES if name not in BOMBS] + [
        ("row", name) for name in ROW_TEMPLATES
    ]

    def one(attack: tuple[str, str]) -> Outcome:
        where, name = attack
        text = CHAT_TEMPLATES[name] if where == "chat" else ROW_TEMPLATES[name]
        return attempt(folder / f"{where} {name}", text if where == "chat" else None, text if where == "row" else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker.__init__, "__defaults__", (SHORT_SECONDS,))
        watch.start()
        found = {("chat", name): attempt(folder / f"chat {name}", CHAT_TEMPLATES[name], None) for name in BOMBS}
        watch.done.set()
        watch.join()
        return found | {attack: one(attack) for attack in attacks}, watch


def test_the_limit_that_ships() -> None:
    """What the attacks have less of is what a worker has that nobody gives another limit to."""
    assert Worker.__init__.__defaults__ == (SHIPPED_SECONDS,)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_hostile_chat_template_is_refused(name: str, outcomes: tuple[dict[tuple[str, str], Outcome], Watch]) -> None:
    error, seconds = outcomes[0]["chat", name]
    assert type(error) is PolicyError, error
    assert error.exit_code == 12
    assert error.faults[0].where == "/data/chat_template"
    assert seconds < SECONDS


@pytest.mark.parametrize("name", ROW_TEMPLATES)
def test_hostile_row_template_is_refused(name: str, outcomes: tuple[dict[tuple[str, str], Outcome], Watch]) -> None:
    error, seconds = outcomes[0]["row", name]
    assert type(error) is PolicyError, error
    assert error.faults[0].where == "/data/train/0/template/user"
    assert seconds < SECONDS


def test_the_job_itself_does_not_grow(outcomes: tuple[dict[tuple[str, str], Outcome], Watch]) -> None:
    watch = outcomes[1]
    assert watch.peak_bytes - watch.start_bytes < GROWTH_BYTES


def workers_of(pid: int) -> list[psutil.Process]:
    living = [process for process in psutil.Process(pid).children() if process.status() != psutil.STATUS_ZOMBIE]
    return [process for process in living if "job.data.worker" in process.cmdline()]


def test_a_worker_sees_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_canary_canary")
    worker = Worker(write_tokenizer(load_tokenizer(byte_tokenizer_dir()), tmp_path / "tokenizer.json"))
    try:
        worker.wait_until_ready()
        (child,) = workers_of(os.getpid())
        assert "HF_TOKEN" not in child.environ()
        maps = Path(f"/proc/{child.pid}/maps").read_text()
        assert "tokenizers" in maps
        assert "torch" not in maps
        assert "numpy" not in maps
    finally:
        worker.close()


LATE = """
import sys, time
from pathlib import Path
from typing import Any
from job.data.pool import Pool
from tests.attacks.test_templates import endless_request

with Pool(Path(sys.argv[1]), 1) as pool:
    pool.ask(endless_request())
"""


def endless_request() -> wire.Request:
    """One that no worker ends, and whose Jinja never lets another thread of the worker run."""
    return wire.Request("turn_end", wire.Job("{{ (10 ** (10 ** 10)) % 7 }}", {}, [], "responses", 64, [], None))


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    return write_tokenizer(load_tokenizer(byte_tokenizer_dir()), tmp_path / "tokenizer.json")


def test_a_worker_dies_with_its_killed_parent(tokenizer_json: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", LATE, str(tokenizer_json)])
    while not (workers := workers_of(parent.pid)) or workers[0].cpu_times().user < 0.5:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    for worker in alive:
        worker.kill()
    assert alive == []


def test_a_frozen_container_is_not_a_hostile_template(tokenizer_json: Path) -> None:
    """Its worker is frozen for longer than the limit, as with SIGSTOP of a container; then the answer comes."""
    job = replace(endless_request().job, chat_template="{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    worker = Worker(tokenizer_json, answer_seconds=0.5)
    try:
        worker.wait_until_ready()
        (process,) = workers_of(os.getpid())
        process.suspend()
        threading.Timer(1.5, process.resume).start()
        assert worker.ask(wire.dump(wire.Request("turn_end", job))) == (wire.Reply(turn_end="<|im_end|>"), b"")
    finally:
        worker.close()


def test_what_is_not_asked_about_a_loop_is_what_jinja_would_allow() -> None:
    """The shortcut of the sandbox gives nothing that its base class refuses."""
    refused = ("__class__", "_recurse", "_iterator", "_undefined")
    for name in refused:
        with pytest.raises(sandbox.TemplateRefusedError):
            sandbox.render(f"{{% for m in [1] %}}{{{{ loop.{name} }}}}{{% endfor %}}", {})
    seen: list[Any] = []
    sandbox.render("{% for m in [1] %}{{ see(loop) }}{% endfor %}", {"see": seen.append})
    for name in sandbox.LOOP:
        value = getattr(seen[0], name)
        assert type(value) in (int, bool)
        assert super(type(sandbox.CHAT), sandbox.CHAT).is_safe_attribute(seen[0], name, value)
