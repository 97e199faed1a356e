"""Attack: model repositories that carry code, pickles or paths. Each is refused with its class, or made harmless."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from job.errors import InputError, JobError, PolicyError
from job.source import FetchedModel, fetch_model_config, fetch_model_weights
from job.weights.layout import read_tensors
from tests.servers import Hub

LLAMA = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
CUSTOM = (
    b'{"model_type": "evilnet", '
    b'"auto_map": {"AutoConfig": "configuration.Evil", "AutoModelForCausalLM": "modeling.Evil"}}'
)
AUTO_MAP = b'{"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}'
CODE = b"from pathlib import Path; Path('/tmp/canary').touch()"
INDEX = "model.safetensors.index.json"


def tensors(*names: str) -> bytes:
    """A safetensors file with one float of each name."""
    import numpy
    from safetensors.numpy import save

    return save({name: numpy.zeros(1, "float32") for name in names})


def index(**places: str) -> bytes:
    return json.dumps({"metadata": {"total_size": 4 * len(places)}, "weight_map": places}).encode()


WHOLE = {"config.json": LLAMA, "model.safetensors": tensors("w")}
Tree = dict[str, bytes]

REFUSED: dict[str, tuple[type[JobError], str, Tree]] = {
    "pickle weights": (PolicyError, "safetensors", {"config.json": LLAMA, "pytorch_model.bin": CODE}),
    "sharded pickle": (PolicyError, "safetensors",
                       {"config.json": LLAMA, "pytorch_model.bin.index.json": b"{}", "m-1.bin": CODE}),
    "pt": (PolicyError, "safetensors", {"config.json": LLAMA, "consolidated.00.pth": CODE}),
    "pt2": (PolicyError, "safetensors", {"config.json": LLAMA, "model.pt2": CODE}),
    "ckpt": (PolicyError, "safetensors", {"config.json": LLAMA, "model.ckpt": CODE}),
    "pkl": (PolicyError, "safetensors", {"config.json": LLAMA, "model.pkl": CODE}),
    "keras": (PolicyError, "safetensors", {"config.json": LLAMA, "tf_model.h5": CODE}),
    "flax": (PolicyError, "safetensors", {"config.json": LLAMA, "flax_model.msgpack": CODE}),
    "gguf only": (PolicyError, "safetensors", {"README.md": b"", "model-q4_k_m.gguf": b"GGUF"}),
    "gguf with config": (PolicyError, "safetensors", {"config.json": LLAMA, "model.gguf": b"GGUF"}),
    "own architecture": (PolicyError, "evilnet",
                         {**WHOLE, "config.json": CUSTOM, "modeling.py": CODE, "configuration.py": CODE}),
    "unknown architecture": (PolicyError, "evilnet", {**WHOLE, "config.json": b'{"model_type": "evilnet"}'}),
    "adapter": (PolicyError, "base", {"adapter_config.json": b"{}", "adapter_model.safetensors": tensors("w")}),
    "adapter in a model": (PolicyError, "base", {**WHOLE, "adapter_config.json": b"{}"}),
    "index climbs": (PolicyError, "dot part", {"config.json": LLAMA, INDEX: index(w="../../etc/x.safetensors")}),
    "index absolute": (PolicyError, "absolute", {"config.json": LLAMA, INDEX: index(w="/etc/x.safetensors")}),
    "index to a pickle": (PolicyError, "not taken", {"config.json": LLAMA, INDEX: index(w="w.bin"), "w.bin": CODE}),
    "index into a folder": (PolicyError, "not taken",
                            {"config.json": LLAMA, INDEX: index(w="d/w.safetensors"), "d/w.safetensors": b""}),
    "index names what is missing": (InputError, "not there", {"config.json": LLAMA, INDEX: index(a="a.safetensors")}),
    "index is empty": (InputError, "not there", {"config.json": LLAMA, INDEX: index()}),
    "index is not JSON": (InputError, "not JSON", {"config.json": LLAMA, INDEX: b"\x80\x04."}),
    "index is a list": (InputError, "JSON object", {"config.json": LLAMA, INDEX: b"[]"}),
    "index maps to numbers": (InputError, "weight_map", {"config.json": LLAMA, INDEX: b'{"weight_map": {"w": 1}}'}),
    "index is deep": (InputError, "not JSON", {"config.json": LLAMA, INDEX: b"[" * 100_000}),
    "no config": (InputError, "config.json", {"model.safetensors": tensors("w")}),
    "config below": (InputError, "config.json", {"sub/config.json": LLAMA, "model.safetensors": tensors("w")}),
    "config is not JSON": (InputError, "not JSON", {**WHOLE, "config.json": b"{"}),
    "config without a type": (InputError, "model_type", {**WHOLE, "config.json": b"{}"}),
    "config with an odd type": (InputError, "model_type", {**WHOLE, "config.json": b'{"model_type": ["llama"]}'}),
    "nothing": (InputError, "not a model", {}),
    "readme alone": (InputError, "not a model", {"README.md": b"# soon"}),
    "weights below": (InputError, "weights", {"config.json": LLAMA, "sub/model.safetensors": tensors("w")}),
    "other safetensors alone": (InputError, "weights",
                                {"config.json": LLAMA, "consolidated.safetensors": tensors("w")}),
    "cut weights": (InputError, "model.safetensors", {"config.json": LLAMA, "model.safetensors": tensors("w")[:-1]}),
    "longer weights": (InputError, "model.safetensors",
                       {"config.json": LLAMA, "model.safetensors": tensors("w") + b"x"}),
    "empty weights": (InputError, "model.safetensors", {"config.json": LLAMA, "model.safetensors": b""}),
    "a pickle named safetensors": (InputError, "model.safetensors",
                                   {"config.json": LLAMA, "model.safetensors": b"\x80\x04\x95" + CODE}),
    "a header of terabytes": (InputError, "model.safetensors",
                              {"config.json": LLAMA, "model.safetensors": b"\xff" * 64}),
    "a git-lfs pointer": (InputError, "model.safetensors",
                          {"config.json": LLAMA, "model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}),
    "a tensor in no shard": (
        InputError, "where it says",
        {"config.json": LLAMA, INDEX: index(a="a.safetensors", b="a.safetensors"), "a.safetensors": tensors("a")},
    ),
}  # fmt: skip
TAKEN: dict[str, tuple[set[str], Tree]] = {
    "plain": ({"config.json", "model.safetensors"}, WHOLE),
    "native type with remote code": ({"config.json", "model.safetensors"},
                                     {**WHOLE, "config.json": AUTO_MAP, "modeling.py": CODE}),
    "pickles beside": (
        {"config.json", "model.safetensors", "tokenizer.json"},
        {**WHOLE, "tokenizer.json": b"{}", "pytorch_model.bin": CODE, "optimizer.pt": CODE, "args.bin": CODE,
         "tokenizer.pkl": CODE},
    ),
    "a second set of weights": ({"config.json", "model.safetensors"},
                                {**WHOLE, "consolidated.safetensors": CODE, INDEX: index(w="../x")}),
    "folders": ({"config.json", "model.safetensors"},
                {**WHOLE, "original/params.json": b"{}", "onnx/model.onnx": CODE, "c/evil.py": CODE}),
    "shards": (
        {"config.json", INDEX, "a.safetensors", "b.safetensors"},
        {"config.json": LLAMA, INDEX: index(a="a.safetensors", b="b.safetensors"), "a.safetensors": tensors("a"),
         "b.safetensors": tensors("b"), "c.safetensors": tensors("c")},
    ),
    "tokenizers and templates": (
        {"config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja",
         "generation_config.json"},
        {**WHOLE, "tokenizer.model": b"m", "merges.txt": b"m", "chat_template.jinja": b"{{ x }}",
         "generation_config.json": b"{}",
         "Makefile": b"all:", "run.sh": CODE, "a.exe": CODE, "lib.so": CODE, "x.json.py": CODE},
    ),
}  # fmt: skip


def on_disk(tree: Tree, folder: Path) -> str:
    for name, data in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    folder.mkdir(exist_ok=True)
    return str(folder)


def fetch(source: str, workdir: Path) -> FetchedModel:
    return fetch_model_weights(fetch_model_config(source, workdir))


def visible(folder: Path) -> set[str]:
    """What a loader would see."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts}


@pytest.mark.parametrize("place", ["local", "hub"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(request: pytest.FixtureRequest, tmp_path: Path, name: str, place: str) -> None:
    kind, words, tree = REFUSED[name]
    if place == "local":
        source = on_disk(tree, tmp_path / "theirs")
    else:
        source = "hf://evil/model"
        hub: Hub = request.getfixturevalue("hub")
        hub.repo("evil/model").commit(tree)
    with pytest.raises(kind, match=words) as failure:
        fetch(source, tmp_path / "work")
    assert type(failure.value) is kind
    assert {fault.where for fault in failure.value.faults} == {"/model/source"}
    assert not [
        p for p in (tmp_path / "work").rglob("*") if p.suffix in (".py", ".bin", ".pth", ".pkl", ".gguf", ".pt", ".pt2")
    ]


@pytest.mark.parametrize("place", ["local", "hub"])
@pytest.mark.parametrize("name", TAKEN)
def test_taken_without_the_poison(request: pytest.FixtureRequest, tmp_path: Path, name: str, place: str) -> None:
    expected, tree = TAKEN[name]
    if place == "local":
        source = on_disk(tree, tmp_path / "theirs")
    else:
        source = "hf://good/model"
        hub: Hub = request.getfixturevalue("hub")
        hub.repo("good/model").commit(tree)
    fetched = fetch(source, tmp_path / "work")
    assert visible(fetched.path) == expected == {*fetched.files, *fetched.weights}
    assert fetched.weight_bytes == sum(len(tree[w]) for w in fetched.weights)


def test_links_of_a_local_model_are_followed_and_nothing_lands_beside_it(tmp_path: Path) -> None:
    """As in a Hub cache, where each file of a snapshot is a link to a blob."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    on_disk(WHOLE, blobs)
    snapshot.mkdir()
    for name in WHOLE:
        (snapshot / name).symlink_to(blobs / name)
    fetched = fetch(str(snapshot), tmp_path / "work")
    (fetched.path / "written-by-a-vendor.py").write_bytes(CODE)
    assert visible(snapshot) == set(WHOLE)
    assert (fetched.path / "config.json").read_bytes() == LLAMA


@pytest.mark.parametrize("stranger", ["modeling.py", "adapter_config.json", "model.bin"])
def test_a_work_directory_with_something_else_in_it_is_refused(tmp_path: Path, stranger: str) -> None:
    (tmp_path / "work" / "model").mkdir(parents=True)
    (tmp_path / "work" / "model" / stranger).write_bytes(CODE)
    with pytest.raises(InputError, match="not empty"):
        fetch(on_disk(WHOLE, tmp_path / "theirs"), tmp_path / "work")


def test_a_model_is_never_staged_over_the_users_own(tmp_path: Path) -> None:
    """`model` in the work directory may be the very directory that was named."""
    source = on_disk(WHOLE, tmp_path / "model")
    with pytest.raises(InputError, match="/model/source"):
        fetch(source, tmp_path)
    assert {name: (tmp_path / "model" / name).read_bytes() for name in WHOLE} == WHOLE


def test_a_pipe_in_a_model_directory_does_not_hang(tmp_path: Path) -> None:
    import os

    source = on_disk(WHOLE, tmp_path / "theirs")
    os.mkfifo(tmp_path / "theirs" / "tokenizer.json")
    assert visible(fetch(source, tmp_path / "work").path) == set(WHOLE)


HEADERS = {
    "a list": b"[]",
    "no tensor": b'{"a": 1}',
    "nothing of a tensor": b'{"a": {}}',
    "no place": b'{"a": {"dtype": "F32", "shape": [1]}}',
    "half a place": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
    "a place in words": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}',
    "a shape in words": b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
    "a shape without end": b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
    "no text": b"\xff\xfe",
    "nested": b"[" * 200_000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    """Of safetensors, which the job itself reads for shapes and sizes: never an unknown failure, to be tried again."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(HEADERS[name])) + HEADERS[name] + bytes(4))
    with pytest.raises(InputError, match="has not the header of a safetensors file"):
        read_tensors(path)
