"""What is published is listed, and any change of it is found."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import pytest

from job.__main__ import main
from job.errors import GateError, InputError, JobError, TransientError
from job.ledger.claim import examine, spec_bytes
from job.ledger.manifest import MANIFEST, SPEC, File, Manifest, publish, read_manifest, store_file, stored_file, verify
from job.spec import JobSpec, parse_spec
from job.spec.strict import StrictValidator, load_schema
from job.store import DirectoryStore, Store, open_store

MUTATIONS = 1000
SHA = "0" * 64


def a_spec(name: str = "x", uri: str = "out", **training: object) -> JobSpec:
    document = {
        "version": 1,
        "name": name,
        "model": {"source": "./model"},
        "data": {"train": [{"source": "./rows.jsonl", "format": "text"}]},
        "training": training,
        "output": {"uri": uri},
    }
    return parse_spec(json.dumps(document).encode())


def a_manifest(spec: JobSpec, files: list[File]) -> Manifest:
    return Manifest(
        run_id=spec.run_id,
        name=spec.name,
        base={"source": spec.model.source, "public_id": "model", "revision": "a" * 40},
        data=[{"source": "./rows.jsonl", "split": "train", "revision": None, "sha256": SHA}],
        chat_template_sha256=hashlib.sha256(b"{{ x }}").hexdigest(),
        packages={"torch": "2.13.0"},
        results={"held_out_loss": 1.25, "steps": 60, "base": {"held_out_loss": 2.5, "exact_match": None}},
        files=files,
    )


ALWAYS = {"adapter/adapter_model.safetensors": random.Random(0).randbytes(300), "stats.json": b"{}\n"}


def claimed(store: Store, spec: JobSpec) -> File:
    """The spec, stored as a run stores it with its first artefact."""
    store.write(SPEC, spec_bytes(spec))
    return stored_file(store, SPEC)


def finished(store: Store, spec: JobSpec, tmp_path: Path, contents: dict[str, bytes]) -> Manifest:
    """A whole run's worth of objects, published."""
    files = [claimed(store, spec)]
    for key, data in (ALWAYS | contents).items():
        local = tmp_path / "local"
        local.write_bytes(data)
        files.append(store_file(store, local, key))
    manifest = a_manifest(spec, files)
    publish(store, manifest)
    return manifest


CONTENTS = {
    "adapter/adapter_model.safetensors": random.Random(0).randbytes(3000),
    "adapter/adapter_config.json": b'{"r": 16}\n',
    "report/samples.md": b"a\n",
    "report/twin.md": b"b\n",
    "stats.json": b"{}\n",
}


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(
        str(tmp_path / "out") if request.param == "directory" else f"s3://{request.getfixturevalue('bucket')}/run"
    )


def test_published_is_verified_and_found_again(store: Store, tmp_path: Path) -> None:
    spec = a_spec()
    manifest = finished(store, spec, tmp_path, CONTENTS)
    before = store.list()
    assert {s.key for s in before} == {*CONTENTS, SPEC, MANIFEST}
    read = verify(store)
    assert read == examine(store, spec) == read_manifest(store)
    assert read.encode() == manifest.encode() == store.read(MANIFEST)
    assert [f.key for f in read.files] == sorted([*CONTENTS, SPEC])
    for file in read.files:
        assert (file.bytes, file.sha256) == (
            len(store.read(file.key)),
            hashlib.sha256(store.read(file.key)).hexdigest(),
        )
    assert store.list() == before
    assert read.results == manifest.results


def test_the_stored_document_fits_the_schema_and_every_property_is_described(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "out")
    finished(store, a_spec(), tmp_path, CONTENTS)
    schema = load_schema("manifest")
    document = json.loads(store.read(MANIFEST))
    assert list(StrictValidator(schema).iter_errors(document)) == []
    assert set(document) == set(schema["required"]) == set(schema["properties"])
    assert {f.name for f in dataclasses.fields(Manifest)} | {"sha256"} == set(schema["properties"])
    for name in ("base", "files"):
        part = schema["properties"][name]
        part = part.get("items", part)
        assert not part["additionalProperties"]
        assert all(described["description"] for described in part["properties"].values())
    content = {k: v for k, v in document.items() if k != "sha256"}
    compact = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert document["sha256"] == hashlib.sha256(compact.encode()).hexdigest()


def mutate(root: Path, keys: list[str], rng: random.Random) -> str:
    """One random change of what is stored; says which."""
    path = root / rng.choice(keys)
    data = path.read_bytes()
    kind = rng.choice(["flip", "flip", "flip", "cut", "grow", "swap", "add", "remove", "rename"])
    if kind == "flip":
        bit = rng.randrange(len(data) * 8)
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        kind += f" {bit}"
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "grow":
        path.write_bytes(data + rng.randbytes(1))
    elif kind == "swap":
        other = root / rng.choice([key for key in keys if root / key != path])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "add":
        (path.parent / f"extra-{rng.randrange(10**9)}").write_bytes(rng.randbytes(rng.randrange(3)))
    elif kind == "remove":
        path.unlink()
    else:
        path.rename(path.with_name(f"{path.name}.old"))
    return f"{kind} {path.relative_to(root)}"


def test_a_thousand_mutations_are_all_detected(tmp_path: Path) -> None:
    """Of any stored object, the manifest and the spec included."""
    store = DirectoryStore(tmp_path / "out")
    finished(store, a_spec(), tmp_path, CONTENTS)
    root, rng = tmp_path / "out", random.Random(3407)
    whole = {s.key: store.read(s.key) for s in store.list()}
    missed = []
    for _ in range(MUTATIONS):
        done = mutate(root, list(whole), rng)
        try:
            verify(store)
        except (GateError, InputError):
            pass
        else:
            missed.append(done)
        for path in [path for path in root.rglob("*") if path.is_file()]:
            path.unlink()
        for key, data in whole.items():
            (root / key).write_bytes(data)
    assert missed == []
    assert verify(store).name == "x"


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    finished(store, a_spec(), tmp_path, {})
    whole = store.read(MANIFEST)
    rng = random.Random(0)
    for at in range(len(whole)):
        (tmp_path / MANIFEST).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(GateError):
            read_manifest(store)


def test_verify_names_every_fault_at_once(store: Store, tmp_path: Path) -> None:
    finished(store, a_spec(), tmp_path, CONTENTS)
    store.write("report/samples.md", b"A\n")
    store.write("adapter/adapter_config.json", b"{}")
    store.delete("stats.json")
    store.write("adapter/extra.bin", b"x")
    store.write("checkpoints/0123/step-10/file", b"x")
    with pytest.raises(GateError) as failure:
        verify(store)
    assert [(f.where, f.message) for f in failure.value.faults] == [
        ("adapter/adapter_config.json", "changed"),
        ("stats.json", "missing"),
        ("report/samples.md", "changed"),
        ("adapter/extra.bin", "not listed in the manifest"),
    ]
    assert ["--replace" in f.hint for f in failure.value.faults] == [True, False, False, False], "the cure is said once"


@pytest.mark.parametrize("left_out", ["all", SPEC, "stats.json", "adapter/adapter_model.safetensors"])
def test_a_manifest_that_lists_no_result_is_damaged_whatever_its_digest(
    store: Store, tmp_path: Path, left_out: str
) -> None:
    """Spec, statistics and weights are in every result; a rerun would otherwise end with 0 and nothing to show."""
    whole = finished(store, a_spec(), tmp_path, {})
    rest = [] if left_out == "all" else [file for file in whole.files if file.key != left_out]
    store.write(MANIFEST, dataclasses.replace(whole, files=rest).encode())
    with pytest.raises(GateError, match="damaged"):
        verify(store)
    with pytest.raises(InputError, match="damaged"):
        examine(store, a_spec())


def test_a_manifest_that_lists_a_file_twice_is_damaged(store: Store, tmp_path: Path) -> None:
    whole = finished(store, a_spec(), tmp_path, {})
    store.write(MANIFEST, dataclasses.replace(whole, files=[*whole.files, whole.files[0]]).encode())
    with pytest.raises(GateError, match="twice"):
        verify(store)


def test_added_folders_that_are_links_are_found(tmp_path: Path) -> None:
    store, elsewhere = DirectoryStore(tmp_path / "out"), tmp_path / "elsewhere"
    finished(store, a_spec(), tmp_path, CONTENTS)
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"x")
    (tmp_path / "out" / "adapter" / "more").symlink_to(elsewhere)
    (tmp_path / "out" / "round").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(GateError) as failure:
        verify(store)
    assert [(f.where, f.message) for f in failure.value.faults] == [
        (key, "not listed in the manifest") for key in ("adapter/more", "dangling", "round")
    ]


def test_a_folder_replaced_by_a_link_is_found(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "out")
    finished(store, a_spec(), tmp_path, CONTENTS)
    (tmp_path / "out" / "adapter").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "adapter").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GateError) as failure:
        verify(store)
    assert {(f.where, f.message) for f in failure.value.faults} == {
        ("adapter/adapter_config.json", "missing"),
        ("adapter/adapter_model.safetensors", "missing"),
        ("adapter", "not listed in the manifest"),
    }


def test_thousands_of_missing_files_are_counted_and_the_first_hundred_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(tmp_path / "out")
    whole = finished(store, a_spec(), tmp_path, {})
    lost = [File(f"gguf/{number:05}", 1, SHA) for number in range(3000)]
    store.write(MANIFEST, dataclasses.replace(whole, files=[*whole.files, *lost]).encode())
    assert main(["verify", str(tmp_path / "out")]) == 14
    said = capsys.readouterr().out
    failure = json.loads(said.splitlines()[-1])
    assert (failure["faults"], len(failure["all"]), failure["all"][-1]) == (3000, 101, "and 2900 more")
    assert failure["all"][99] == "gguf/00099: missing; expected 1 bytes"
    assert len(said) < 20_000


def test_checkpoints_are_not_part_of_the_result(store: Store, tmp_path: Path) -> None:
    manifest = finished(store, a_spec(), tmp_path, {})
    store.write("checkpoints/0123/step-10/file", b"x")
    assert verify(store).run_id == manifest.run_id


# ------------------------------------------------------------------------------------------------ publish


def test_publishing_what_is_not_there_fails_and_shows_no_manifest(store: Store, tmp_path: Path) -> None:
    claimed(store, a_spec())
    (tmp_path / "local").write_bytes(b"xyz")
    there = store_file(store, tmp_path / "local", "there")
    for lost in (File("absent", 1, SHA), dataclasses.replace(there, bytes=4)):
        with pytest.raises(TransientError, match=lost.key):
            publish(store, a_manifest(a_spec(), [lost]))
    assert MANIFEST not in {s.key for s in store.list()}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"loss": float("-inf")}], ids=str)
def test_a_result_that_is_not_finite_is_never_published(tmp_path: Path, value: object) -> None:
    store = DirectoryStore(tmp_path)
    claimed(store, a_spec())
    with pytest.raises(GateError, match="not finite"):
        publish(store, dataclasses.replace(a_manifest(a_spec(), []), results={"x": value}))
    assert [s.key for s in store.list()] == [SPEC]


@pytest.mark.parametrize(
    "wrong",
    [
        {"run_id": "xyz"},
        {"created": "yesterday"},
        {"base": {"source": "a", "public_id": "b", "revision": "main"}},
        {"base": {"source": "a", "public_id": "b", "revision": None, "extra": "x"}},
        {"data": [{"source": "a", "revision": None}]},
        {"results": {"x": "1"}},
        {"files": [File("a", -1, SHA)]},
        {"version": 2},
    ],
    ids=str,
)
def test_a_manifest_that_breaks_the_schema_is_never_written(tmp_path: Path, wrong: dict[str, object]) -> None:
    store = DirectoryStore(tmp_path)
    with pytest.raises(JobError):
        publish(store, dataclasses.replace(a_manifest(a_spec(), []), **wrong))
    assert store.list() == []


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version": NaN}'], ids=lambda r: str(r[:20])
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(raw)
    with pytest.raises(GateError, match="damaged"):
        verify(DirectoryStore(tmp_path))


NOT_FINISHED = {
    "nothing": ({}, "nothing", "Check the address"),
    "unfinished": ({SPEC: b"{}"}, "a run that has not come so far", "Run its spec again"),
    "failed": (
        {"stats.json": b'{"status": "failed", "run_id": "0123456789abcdef", "failure": {"message": "no column text"}}'},
        "a run that failed: no column text",
        "mend it",
    ),
    "others": ({"notes.txt": b"x"}, "notes.txt, which no run has stored", "output.uri of a run"),
}


@pytest.mark.parametrize("name", NOT_FINISHED)
@pytest.mark.parametrize(("command", "key"), [("verify", MANIFEST), ("report", "report/summary.md")])
def test_where_no_run_has_finished_it_is_said_what_is_there(
    command: str, key: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents, found, hint = NOT_FINISHED[name]
    for path, data in contents.items():
        (tmp_path / path).write_bytes(data)
    assert main([command, str(tmp_path)]) == 11
    failure = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (failure["class"], failure["pointer"], failure["found"]) == ("InputError", f"{tmp_path}/{key}"[-96:], found)
    assert hint in failure["hint"]


def test_no_manifest_is_an_input_error(store: Store) -> None:
    with pytest.raises(InputError, match=MANIFEST):
        verify(store)
