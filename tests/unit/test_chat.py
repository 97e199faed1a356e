"""What of a conversation is asked: as much of its end as has room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from job.chat.answering import Speaker
from job.chat.fetched import main as fetch
from job.chat.published import open_published
from job.data.chat import describe
from job.data.pool import Pool
from job.data.tokenizer import load_tokenizer, write_tokenizer
from job.errors import GateError, InputError
from job.store import open_store
from tests.specs import parse
from tests.tiny import tiny_dir
from tests.unit.test_manifest import a_spec, finished

TURNS = [("user", "Turn on the lamp."), ("assistant", "It is on."), ("user", "Turn it off.")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]
MOST = 4


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    """One that says in token ids what it was asked."""
    tokenizer = load_tokenizer(tiny_dir())
    job = describe(tokenizer, str(tokenizer.chat_template), 128)
    with Pool(write_tokenizer(tokenizer, tmp_path_factory.mktemp("chat") / "tokenizer.json"), 1) as pool:
        yield Speaker("an echo", lambda ids: ids, tokenizer, pool, job, 1000, MOST)


def with_room(speaker: Speaker, tokens: int) -> Speaker:
    return Speaker(speaker.what, speaker.answer, speaker.tokenizer, speaker.pool, speaker.job, tokens, MOST)


def length(speaker: Speaker, messages: list[dict[str, str]]) -> int:
    return len(speaker.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def test_all_of_it_where_it_fits(speaker: Speaker) -> None:
    whole = length(speaker, MESSAGES) + MOST
    text, dropped = with_room(speaker, whole).reply(MESSAGES)
    assert dropped == 0
    assert [content in text for _, content in TURNS] == [True, True, True]
    text, dropped = with_room(speaker, whole - 1).reply(MESSAGES)
    assert dropped == 2
    assert [content in text for _, content in TURNS] == [False, False, True]


def test_a_question_alone_that_is_too_long_is_refused_with_its_length(speaker: Speaker) -> None:
    tokens = length(speaker, MESSAGES[-1:])
    with pytest.raises(InputError) as refused:
        with_room(speaker, tokens).reply(MESSAGES)
    (fault,) = refused.value.faults
    assert (fault.found, fault.expected) == (f"{tokens} tokens, and {MOST} for the answer", f"at most {tokens}")


@pytest.mark.parametrize(
    "statistics",
    ["{}", "[]", "{", '{"data": null}', '{"data": {"stop_token_ids": ["2"]}}', '{"data": {"stop_token_ids": 2}}'],
)
def test_statistics_of_another_form_are_a_damaged_output(statistics: str, tmp_path: Path) -> None:
    """Listed with its hash by whoever wrote the manifest; it was an unknown failure, which is tried again."""
    output = tmp_path / "out"
    finished(open_store(str(output)), a_spec(), tmp_path, {"stats.json": statistics.encode()})
    with pytest.raises(GateError) as refused:
        open_published(str(output))
    assert refused.value.faults[0].where == "stats.json"


def test_what_a_server_is_given_has_the_name_that_it_knows_and_the_published_bytes(tmp_path: Path) -> None:
    """An adapter; a GGUF that the run has not, a file that is another and a run that has not finished are refused."""
    output, models = tmp_path / "out", tmp_path / "models"
    models.mkdir()
    contents = {"adapter/adapter_config.json": b"{}", "stats.json": b'{"data": {"stop_token_ids": [2]}}'}
    finished(open_store(str(output)), a_spec(), tmp_path, contents)
    assert fetch([str(output), str(models), "--adapter"]) == 0
    assert (models / "adapter" / "adapter_config.json").read_bytes() == b"{}"
    assert fetch([str(output), str(models), "--gguf", "q8_0"]) == 11
    for changed in (b"{} ", b"[]"):
        (output / "adapter" / "adapter_config.json").write_bytes(changed)
        assert fetch([str(output), str(models), "--adapter"]) == 14
    (output / "manifest.json").unlink()
    assert fetch([str(output), str(models), "--adapter"]) == 11


@pytest.mark.parametrize(
    ("started", "uri", "found"),
    [("", "out", True), ("deep", "a/out", True), ("", "./x/../out", True), ("elsewhere", "out", False)],
)
def test_a_base_at_a_relative_path_is_found_from_wherever_chat_is_called(
    started: str, uri: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the output lies where the run has put it, from where the run was started."""
    spec = parse({"/output/uri": uri, "/model/source": "models/base"})
    start = tmp_path / started
    output = tmp_path / "moved" if started == "elsewhere" else start / uri
    (start / "models" / "base").mkdir(parents=True)
    (tmp_path / "models" / "base").mkdir(parents=True, exist_ok=True)  # beside an output that was moved: another model
    output.parent.mkdir(parents=True, exist_ok=True)
    contents = {"stats.json": b'{"data": {"stop_token_ids": [2]}}'}
    finished(open_store(str(output.resolve())), spec, tmp_path, contents)
    monkeypatch.chdir(output.resolve())
    base = open_published(".").base_source
    assert base == (str(start / "models" / "base") if found else "models/base")
