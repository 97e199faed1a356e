"""Models and data brought in from a local path, S3 and a Hub: pinned, contained, the right files of a split."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from job.errors import InputError, JobError, PolicyError, TransientError
from job.source import FetchedSource, fetch_data, fetch_model_config, fetch_model_weights
from job.spec import DataSpec, HeldOutSpec, SourceSpec
from tests.servers import Hub, S3Server, closed_port

LLAMA = b'{"model_type": "llama"}'
ROW = b'{"text": "a"}\n'


def weights(seed: int, floats: int = 5000) -> bytes:
    import numpy
    from safetensors.numpy import save

    return save({"w": numpy.full(floats, seed, "float32")})


def source(address: str, split: str = "train", subset: str | None = None) -> SourceSpec:
    return SourceSpec(address, "text", split, subset, {}, None, None, 1.0)


def data(*train: SourceSpec, held_out: tuple[SourceSpec, ...] | None = None) -> DataSpec:
    return DataSpec(train, HeldOutSpec(None, None, held_out) if held_out else None, "model", "all", False, True, 0.05)


def fetch_one(address: str, workdir: Path, split: str = "train", subset: str | None = None) -> FetchedSource:
    [fetched], held_out = fetch_data(data(source(address, split, subset)), workdir)
    assert held_out is None
    return fetched


def names(fetched: FetchedSource, workdir: Path) -> list[str]:
    return [f.relative_to(workdir.resolve() / "data" / "train-0").as_posix() for f in fetched.files]


def put(tree: dict[str, bytes], place: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A data set at a place; gives its address."""
    if place == "hub":
        request.getfixturevalue("hub").repo("datasets/org/rows").commit(tree)
        return "hf://datasets/org/rows"
    if place == "s3":
        server: S3Server = request.getfixturevalue("s3")
        bucket: str = request.getfixturevalue("bucket")
        for name, content in tree.items():
            server.client().put_object(Bucket=bucket, Key=f"rows/{name}", Body=content)
        server.client().put_object(Bucket=bucket, Key="rows-of-others/train.jsonl", Body=ROW)
        return f"s3://{bucket}/rows"
    for name, content in tree.items():
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rows" / name).write_bytes(content)
    return str(tmp_path / "rows")


# --------------------------------------------------------------------------------------------- models on a Hub


def test_a_branch_that_moves_between_config_and_weights_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("org/name", card={"license": "apache-2.0"})
    first = repo.commit({"config.json": LLAMA, "model.safetensors": weights(1), "tokenizer.json": b"{}"})
    fetched = fetch_model_config("hf://org/name@main", tmp_path)
    assert (fetched.public_id, fetched.revision, fetched.licence) == ("org/name", first, "apache-2.0")
    assert not (fetched.path / "model.safetensors").exists()
    second = repo.commit({"config.json": b'{"model_type": "gpt2"}', "model.safetensors": weights(2)})
    assert second != first
    fetch_model_weights(fetched)
    assert (fetched.path / "model.safetensors").read_bytes() == weights(1)
    assert (fetched.path / "config.json").read_bytes() == LLAMA
    asked = [path for _, path, _ in hub.seen if "/resolve/" in path]
    assert asked
    assert all(f"/resolve/{first}/" in path for path in asked)


@pytest.mark.parametrize("how", ["commit", "branch", "branch with a slash", "default"])
def test_every_way_to_name_a_revision_gives_a_commit(hub: Hub, tmp_path: Path, how: str) -> None:
    repo = hub.repo("org/name")
    old = repo.commit({"config.json": LLAMA, "model.safetensors": weights(1)}, branch="refs/pr/1")
    new = repo.commit({"config.json": LLAMA, "model.safetensors": weights(2)})
    asked, expected = {
        "commit": (f"@{old}", old),
        "branch": ("@main", new),
        "branch with a slash": ("@refs/pr/1", old),
        "default": ("", new),
    }[how]
    assert fetch_model_config(f"hf://org/name{asked}", tmp_path).revision == expected


def test_shards_and_a_listing_of_several_pages(hub: Hub, tmp_path: Path) -> None:
    import numpy
    from safetensors.numpy import save

    shards = {f"model-{i:05}-of-00030.safetensors": save({f"w{i}": numpy.full(3, i, "float32")}) for i in range(30)}
    index = json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(shards)}}).encode()
    hub.repo("org/name").commit({**shards, "config.json": LLAMA, "model.safetensors.index.json": index})
    fetched = fetch_model_weights(fetch_model_config("hf://org/name", tmp_path))
    assert fetched.weights == tuple(shards)
    assert {name: (fetched.path / name).read_bytes() for name in shards} == shards


REFUSALS = {
    "unknown repository": ("hf://org/none", "no such repository"),
    "unknown revision": ("hf://org/open@v9", "no such revision"),
    "unknown commit": (f"hf://org/open@{'0' * 40}", "no such revision"),
    "private": ("hf://org/private", "no such repository.*HF_TOKEN"),
    "gated": ("hf://org/gated", "gated.*HF_TOKEN"),
}


@pytest.mark.parametrize("token", [None, "hf_wrong"])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_read_is_an_input_error(
    hub: Hub, clean_environment: pytest.MonkeyPatch, tmp_path: Path, name: str, token: str | None
) -> None:
    tree = {"config.json": LLAMA, "model.safetensors": weights(1)}
    hub.repo("org/open").commit(tree)
    hub.repo("org/private", private=True).commit(tree)
    hub.repo("org/gated", gated=True).commit(tree)
    if token:
        clean_environment.setenv("HF_TOKEN", token)
    address, words = REFUSALS[name]
    with pytest.raises(InputError, match=f"(?s){words}") as failure:
        fetch_model_config(address, tmp_path)
    assert failure.value.faults[0].where == "/model/source"
    assert "hf_wrong" not in str(failure.value)


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_the_token_opens_gated_and_private_and_is_left_nowhere(
    hub: Hub, clean_environment: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    clean_environment.setenv(variable, hub.token)
    for name, settings in {"gated": {"gated": True}, "private": {"private": True}}.items():
        hub.repo(f"org/{name}", **settings).commit({"config.json": LLAMA, "model.safetensors": weights(1)})
        spec = f"hf://org/{name}"
        fetch_model_weights(fetch_model_config(spec, tmp_path / name))
    files = [p for p in [*tmp_path.rglob("*"), *Path(os.environ["HOME"]).rglob("*")] if p.is_file()]
    assert len(files) >= 4
    assert not [p for p in files if hub.token.encode() in p.read_bytes()]
    cdn = [authorization for _, path, authorization in hub.seen if path.startswith("/cdn/")]
    assert cdn == [None] * len(cdn) != []


def test_without_a_token_none_is_sent(hub: Hub, clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even one that the user has stored on this machine."""
    stored = Path(os.environ["HOME"]) / "token"
    stored.write_text("hf_stored")
    clean_environment.setenv("HF_TOKEN_PATH", str(stored))
    hub.repo("org/name").commit({"config.json": LLAMA, "model.safetensors": weights(1)})
    fetch_model_config("hf://org/name", tmp_path)
    assert {authorization for _, _, authorization in hub.seen} == {None}


def test_a_few_failures_of_the_hub_are_survived(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/name").commit({"config.json": LLAMA, "model.safetensors": weights(1)})
    spec = "hf://org/name"
    hub.failures = 2
    fetched = fetch_model_config(spec, tmp_path)
    hub.cuts = 1
    fetch_model_weights(fetched)
    assert (fetched.path / "model.safetensors").read_bytes() == weights(1)
    assert hub.failures == hub.cuts == 0


@pytest.mark.parametrize("kind", ["closed", "not a hub"])
def test_a_hub_that_is_away_is_transient(
    hub: Hub, clean_environment: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    hub.repo("org/name").commit({"config.json": LLAMA, "model.safetensors": weights(1)})
    if kind == "closed":
        clean_environment.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    else:
        hub.is_hub = False
    start = time.monotonic()
    with pytest.raises(TransientError, match="org/name") as refused:
        fetch_model_config("hf://org/name", tmp_path)
    assert time.monotonic() - start < 20
    assert (
        ("the Hub is not within reach" in str(refused.value))
        == ("HF_ENDPOINT a mirror" in str(refused.value))
        == (kind == "closed")
    )


def test_a_second_fetch_into_the_same_directory_takes_only_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/name").commit({"config.json": LLAMA, "model.safetensors": weights(1)})
    spec = "hf://org/name"
    fetch_model_weights(fetch_model_config(spec, tmp_path))
    (tmp_path / "model" / "config.json").unlink()
    hub.seen.clear()
    fetched = fetch_model_weights(fetch_model_config(spec, tmp_path))
    assert [path.rpartition("/")[2] for method, path, _ in hub.seen if method == "GET" and "/resolve/" in path] == [
        "config.json"
    ]
    assert (fetched.path / "config.json").read_bytes() == LLAMA


OFFLINE = """
import os, sys
from pathlib import Path
import datasets
from job.source import fetch_model_config, go_offline
spec = "hf://org/name"
fetch_model_config(spec, Path(sys.argv[1]) / "a")
go_offline()
assert not [k for k in os.environ if "TOKEN" in k], os.environ
assert datasets.config.HF_HUB_OFFLINE
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import OfflineModeIsEnabled
for use in (lambda: hf_hub_download("org/name", "config.json"), lambda: datasets.load_dataset("org/rows")):
    try:
        use()
    except Exception as error:
        print(type(error).__name__)
"""


def test_offline_means_no_request_and_no_token(hub: Hub, clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment.setenv("HF_TOKEN", hub.token)
    commit = hub.repo("org/name").commit({"config.json": LLAMA, "model.safetensors": weights(1)})
    fetched = subprocess.run([sys.executable, "-c", OFFLINE, str(tmp_path)], capture_output=True, text=True)
    assert fetched.returncode == 0, fetched.stderr
    assert len(fetched.stdout.split()) == 2
    # Nothing after go_offline, and nothing before that was not needed.
    assert [(method, path.rpartition("/")[2]) for method, path, _ in hub.seen] == [
        ("GET", "name"),
        ("GET", f"{commit}?recursive=true&expand=false"),
        ("HEAD", "config.json"),
        ("GET", "config.json"),
    ]


# ------------------------------------------------------------------------------------- models on S3 and locally


def test_a_model_on_s3(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    tree = {
        "config.json": LLAMA,
        "model.safetensors": weights(3),
        "pytorch_model.bin": b"x",
        "a.py": b"x",
        "sub/x.json": b"{}",
    }
    for name, content in tree.items():
        s3.client().put_object(Bucket=bucket, Key=f"models/mine/{name}", Body=content)
    s3.client().put_object(Bucket=bucket, Key="models/mine-too/evil.json", Body=b"{}")
    spec = f"s3://{bucket}/models/mine/"
    fetched = fetch_model_weights(fetch_model_config(spec, tmp_path))
    assert (fetched.public_id, fetched.revision, fetched.weight_bytes) == (
        f"s3://{bucket}/models/mine",
        None,
        len(weights(3)),
    )
    assert {p.name: p.read_bytes() for p in fetched.path.iterdir()} == {
        n: tree[n] for n in ("config.json", "model.safetensors")
    }


@pytest.mark.parametrize(
    ("address", "pointer"), [("s3://no-such-bucket/x", "/model/source"), ("{bucket}/nothing-there", "/model/source")]
)
def test_no_model_on_s3(bucket: str, tmp_path: Path, address: str, pointer: str) -> None:
    with pytest.raises(InputError) as failure:
        fetch_model_config(address.format(bucket=f"s3://{bucket}"), tmp_path)
    assert failure.value.faults[0].where == pointer


def test_a_local_model_goes_by_its_directorys_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models" / "my-model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b'{"model_type": "llama", "_name_or_path": "org/other"}')
    (folder / "model.safetensors").write_bytes(weights(1))
    monkeypatch.chdir(folder)
    for address in (str(folder), f"{folder}/", "../my-model", "."):
        fetched = fetch_model_config(address, tmp_path / "work")
        assert (fetched.public_id, fetched.revision) == ("my-model", None)
        assert fetched.path.is_absolute()
    with pytest.raises(InputError, match="no such file"):
        fetch_model_config("./absent", tmp_path / "work")
    with pytest.raises(InputError, match="a model is a directory"):
        fetch_model_config("model.safetensors", tmp_path / "work")


# ---------------------------------------------------------------------------------------------------- data

CARD = b"""---
configs:
- config_name: en
  default: true
  data_files:
  - {split: train, path: "english/part-*.jsonl"}
  - {split: test, path: english/test.jsonl}
- config_name: de
  data_files: german/*.jsonl
---
# Rows
"""
BY_CARD = {
    "README.md": CARD,
    "english/part-0.jsonl": ROW,
    "english/part-1.jsonl": ROW * 2,
    "english/test.jsonl": ROW,
    "german/a.jsonl": ROW,
    "loader.py": b"raise SystemExit",
    "unused.jsonl": ROW,
}
BY_NAME = {
    "data/train-00000-of-00002.jsonl": ROW,
    "data/train-00001-of-00002.jsonl": ROW,
    "data/test-00000-of-00001.jsonl": ROW,
    "LICENSE": b"MIT",
    "notes.md": b"x",
}
SAVED = {
    "data-00000-of-00002.arrow": ROW,
    "data-00001-of-00002.arrow": ROW,
    "cache-0123456789abcdef.arrow": ROW,
    "state.json": b"{}",
    "dataset_info.json": b"{}",
}
SAVED_SPLITS = {"dataset_dict.json": b"{}"} | {
    f"{split}/{name}": raw for split in ("train", "odd") for name, raw in SAVED.items()
}
SHARDS = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]


@pytest.mark.parametrize("place", ["local", "s3", "hub"])
@pytest.mark.parametrize(
    ("tree", "split", "subset", "expected"),
    [
        (BY_CARD, "train", None, ["english/part-0.jsonl", "english/part-1.jsonl"]),
        (BY_CARD, "train[:10]", "en", ["english/part-0.jsonl", "english/part-1.jsonl"]),
        (BY_CARD, "test", None, ["english/test.jsonl"]),
        (BY_CARD, "train", "de", ["german/a.jsonl"]),
        (BY_NAME, "train", None, ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
        (BY_NAME, "test[-1:]", None, ["data/test-00000-of-00001.jsonl"]),
        ({"a.csv": b"x\n1\n", "b.csv": b"x\n2\n"}, "train", None, ["a.csv", "b.csv"]),
        (
            {"train.jsonl.gz": gzip.compress(ROW), "valid.jsonl.gz": gzip.compress(ROW)},
            "validation",
            None,
            ["valid.jsonl.gz"],
        ),
        ({"only.txt": b"text"}, "train", None, ["only.txt"]),
        (SAVED, "train", None, SHARDS),
        (SAVED_SPLITS, "odd[:1]", None, [f"odd/{name}" for name in SHARDS]),
        ({"train.jsonl": ROW, "dataset_infos.json": b"{}"}, "train", None, ["train.jsonl"]),
        ({"rows.json": b"[]", "dataset_info.json": b"{}"}, "train", None, ["rows.json"]),
        ({"part-0.parquet": b"x", "_SUCCESS": b"", "_metadata": b"x"}, "train", None, ["part-0.parquet"]),
        ({"state.json": b"[]"}, "train", None, ["state.json"]),
    ],
)
def test_the_files_of_a_split(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    place: str,
    tree: dict[str, bytes],
    split: str,
    subset: str | None,
    expected: list[str],
) -> None:
    fetched = fetch_one(put(tree, place, request, tmp_path), tmp_path / "work", split, subset)
    assert names(fetched, tmp_path / "work") == expected
    assert [f.read_bytes() for f in fetched.files] == [tree[name] for name in expected]
    assert fetched.pointer == "/data/train/0"
    staged = {
        p.relative_to(tmp_path / "work" / "data" / "train-0").as_posix()
        for p in (tmp_path / "work").rglob("*")
        if p.is_file()
    }
    assert {name for name in staged if ".cache" not in name} - {"README.md"} == set(
        expected
    )  # nothing more was fetched
    digest = hashlib.sha256("".join(f"{n}\0{hashlib.sha256(tree[n]).hexdigest()}\n" for n in expected).encode())
    assert fetched.sha256 == digest.hexdigest()


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "test.CSV.gz", "ä b.json"])
def test_a_single_file_is_one_split_named_train(
    request: pytest.FixtureRequest, tmp_path: Path, place: str, name: str
) -> None:
    address = put({name: ROW, "other.jsonl": ROW}, place, request, tmp_path) + f"/{name}"
    fetched = fetch_one(address, tmp_path / "work", "train[:5]")
    assert names(fetched, tmp_path / "work") == [name]
    with pytest.raises(InputError, match=r"/data/train/0/split.*no such split.*one of train"):
        fetch_one(address, tmp_path / "work", "test")


def test_a_hub_data_set_is_pinned(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("datasets/org/rows")
    old = repo.commit({"train.jsonl": ROW})
    new = repo.commit({"train.jsonl": ROW * 2})
    assert fetch_one("hf://datasets/org/rows", tmp_path / "1").revision == new
    fetched = fetch_one(f"hf://datasets/org/rows@{old}", tmp_path / "2")
    assert (fetched.revision, fetched.files[0].read_bytes()) == (old, ROW)


def test_held_out_sources_have_their_own_places(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(name.encode())
    a, b, c = (source(str(tmp_path / f"{name}.jsonl")) for name in ("a", "b", "c"))
    train, held_out = fetch_data(data(a, b, held_out=(c, a)), tmp_path / "work")
    assert held_out is not None
    assert [f.files[0].read_bytes() for f in [*train, *held_out]] == [b"a", b"b", b"c", b"a"]
    assert [f.pointer for f in [*train, *held_out]] == [
        "/data/train/0",
        "/data/train/1",
        "/data/held_out/sources/0",
        "/data/held_out/sources/1",
    ]
    assert train[0].sha256 == held_out[1].sha256 != train[1].sha256


def card(text: str) -> bytes:
    return f"---\n{text}\n---\n".encode()


def one_subset(files: str) -> bytes:
    return card(f"configs: [{{config_name: a, {files}}}]")


BAD_DATA: dict[str, tuple[type[JobError], str, str, dict[str, bytes], dict[str, str]]] = {
    "empty": (InputError, "/source", "no|nothing", {}, {}),
    "no data files": (InputError, "/source", "no data files", {"README.md": b"x", "LICENSE": b""}, {}),
    "only other kinds": (InputError, "/source", "no data files|not a kind", {"a.xlsx": b"x", "b.docx": b"x"}, {}),
    "an image set": (InputError, "/source", "not a kind", {"train/a.png": b"x", "train/b.png": b"x"}, {}),
    "only archives": (InputError, "/source", "no data files", {"a.zip": b"PK", "b.tar.gz": b"x"}, {}),
    "a script": (PolicyError, "/source", "script", {"rows.py": b"x", "README.md": b"x"}, {}),
    "split misspelt": (InputError, "/split", "Did you mean train", BY_CARD, {"split": "trian"}),
    "split of another subset": (InputError, "/split", "one of train", BY_CARD, {"split": "test", "subset": "de"}),
    "split of a saved data set": (InputError, "/split", "one of odd, train", SAVED_SPLITS, {"split": "test"}),
    "a saved data set in another order": (InputError, "/source", "flatten_indices",
                                          SAVED | {"indices.arrow": b"x"}, {}),
    "subset misspelt": (InputError, "/subset", "Did you mean en", BY_CARD, {"subset": "enn"}),
    "subset where there is none": (InputError, "/subset", "one of default", BY_NAME, {"subset": "en"}),
    "subset needed": (
        InputError, "/subset", "one of a, b",
        {"README.md": one_subset("data_files: a.csv}, {config_name: b, data_files: b.csv"), "a.csv": b"x",
         "b.csv": b"x"},
        {},
    ),
    "card names a missing file": (InputError, "/source", "no data files",
                                  {"README.md": one_subset("data_files: x.csv")}, {}),
    "card climbs": (PolicyError, "/source", "points out", {"README.md": one_subset("data_files: ../../*.csv")}, {}),
    "card is absolute": (PolicyError, "/source", "points out",
                         {"README.md": one_subset("data_files: /etc/passwd")}, {}),
    "card names a server": (
        PolicyError, "/source", "points out",
        {"README.md": one_subset("data_files: [{split: train, path: 'http://169.254.169.254/x.csv'}]"), "a.csv": b"x"},
        {},
    ),
    "card chains": (PolicyError, "/source", "points out",
                    {"README.md": one_subset("data_files: 'zip://a::b.zip'")}, {}),
    "card's folder climbs": (PolicyError, "/source", "points out", {"README.md": one_subset("data_dir: ../..")}, {}),
    "card is not YAML": (InputError, "/source", "README.md", {"README.md": card("a: [}"), "a.csv": b"x"}, {}),
    "card runs code": (InputError, "/source", "README.md",
                       {"README.md": card("a: !!python/object/apply:os.system [id]")}, {}),
    "card with odd configs": (InputError, "/source", "no data files|README",
                              {"README.md": card("configs: 3"), "a.csv": b"x"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("place", ["local", "hub"])
@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_sets(request: pytest.FixtureRequest, tmp_path: Path, name: str, place: str) -> None:
    kind, pointer, words, tree, asked = BAD_DATA[name]
    (tmp_path / "rows").mkdir()
    address = put(tree, place, request, tmp_path)
    with pytest.raises(kind, match=words) as failure:
        fetch_one(address, tmp_path / "work", **asked)
    assert type(failure.value) is kind
    assert failure.value.faults[0].where == f"/data/train/0{pointer}"
    assert str(tmp_path) not in failure.value.faults[0].message


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"not a kind of file.*jsonl"):
        fetch_one(str(tmp_path / "rows.xlsx"), tmp_path / "work")


def test_no_code_of_a_local_data_set_is_run(tmp_path: Path) -> None:
    """A script named like its directory is what old versions of `datasets` imported."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    (folder / "train.jsonl").write_bytes(ROW)
    assert names(fetch_one(str(folder), tmp_path / "work"), tmp_path / "work") == ["train.jsonl"]
    assert not (tmp_path / "canary").exists()


STOPPED = """
import signal, sys, time
from pathlib import Path
from job.errors import Interrupted
from job.source import fetch_model_config, fetch_model_weights
def stop(*_):
    raise Interrupted("SIGTERM")
signal.signal(signal.SIGTERM, stop)
spec = sys.argv[1]
model = fetch_model_config(spec, Path(sys.argv[2]))
print("config", flush=True)
try:
    fetch_model_weights(model)
except Interrupted as error:
    sys.exit(error.exit_code)
"""


def test_a_stop_signal_does_not_wait_for_a_download(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/name").commit({"config.json": LLAMA, "model.safetensors": weights(1)})
    job = subprocess.Popen([sys.executable, "-c", STOPPED, "hf://org/name", str(tmp_path)], stdout=subprocess.PIPE)
    assert job.stdout is not None
    hub.stall_seconds = 60
    assert job.stdout.readline() == b"config\n"
    while not [path for _, path, _ in hub.seen if path.startswith("/cdn/")]:
        time.sleep(0.01)
    start = time.monotonic()
    job.terminate()
    assert job.wait(30) == 30
    assert time.monotonic() - start < 5
    job.stdout.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_thread_is_not_taken_for_success() -> None:
    from job.host.parallel import in_parallel

    fetched: list[str] = []

    def fetch(name: str) -> None:
        if name == "bad":
            raise InputError("bad")
        fetched.append(name)

    in_parallel(fetch, map(str, range(100)))
    assert sorted(map(int, fetched)) == list(range(100))
    with pytest.raises(InputError, match="bad"):
        in_parallel(fetch, ["a", "bad", *map(str, range(100))])
    with pytest.raises(JobError, match="without an answer"):
        in_parallel(lambda name: int(name), ["1", "no number"])
