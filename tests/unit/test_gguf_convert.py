"""Conversion: the stock converter's bytes, faster; what it cannot do is said; no network, home, writable folder."""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import pytest

from job.errors import CapacityError, GateError, InputError
from job.gguf.convert import _torch_rounding, convert
from job.gguf.header import read_header
from job.gguf.quantise import quantise
from job.gguf.sizes import _require_window, plan
from job.gguf.types import TYPES
from job.gguf.worker import WORKER, Convert, GgufPlan, GgufRequest, Quantise, results
from job.host.child import Child, run_child
from job.host.fork_server import PACKAGE_ROOT
from job.host.records import encode
from tests.forking import environment, run_forked
from tests.ggufs import changed_folder, edit_json
from tests.tiny import narrow_dir, wide_dir

STOCK_TYPES = {"bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "f32": "ALL_F32"}


@pytest.mark.parametrize("name", STOCK_TYPES)
def test_the_bytes_are_those_of_the_stock_converter(name: str, tmp_path: Path) -> None:
    arguments = [str(wide_dir()), str(tmp_path), STOCK_TYPES[name]]
    code, _, complaint = run_forked("tests.ggufs:write_stock", arguments, tmp_path, environment(tmp_path), 120)
    assert code == 0, complaint
    report = convert(wide_dir(), tmp_path / "ours.gguf", name, "tuned", 2)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / STOCK_TYPES[name]).read_bytes()
    assert report.bytes == (tmp_path / "ours.gguf").stat().st_size
    assert report.types[TYPES[name].tensor_type] >= 22


def test_rounding_is_the_stock_one_for_every_kind_of_number() -> None:
    import gguf

    patterns = numpy.random.default_rng(1).integers(0, 2**32, 1 << 16, dtype=numpy.uint32).reshape(256, 256)
    values = patterns.view(numpy.float32)
    values = numpy.where(numpy.isnan(values), 0, values).astype(numpy.float32)
    values[0, :6] = [0.0, -0.0, numpy.inf, -numpy.inf, 1e-45, 3.4028235e38]
    stock = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    with _torch_rounding():
        assert numpy.array_equal(gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16), stock)


def test_nothing_of_the_machine_gets_into_the_file(tmp_path: Path) -> None:
    convert(narrow_dir(), tmp_path / "bf16.gguf", "bf16", "tuned", 1)
    metadata = read_header(tmp_path / "bf16.gguf", "k").metadata
    assert metadata["general.name"] == "tuned"
    assert not [
        value for value in metadata.values() if isinstance(value, str) and (str(tmp_path) in value or ".cache" in value)
    ]


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    folder = changed_folder(
        narrow_dir(), tmp_path / "model", lambda f: edit_json(f / "config.json", architectures=["NovelForCausalLM"])
    )
    with pytest.raises(InputError, match=r"/model/source: .*NovelForCausalLM") as failure:
        plan(folder, tmp_path, ["q8_0"], False)
    assert failure.value.exit_code == 11


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    def other_words(folder: Path) -> None:
        document = json.loads((folder / "tokenizer.json").read_text())
        document["pre_tokenizer"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        (folder / "tokenizer.json").write_text(json.dumps(document))

    folder = changed_folder(narrow_dir(), tmp_path / "model", other_words)
    with pytest.raises(InputError, match="BPE pre-tokenizer was not recognized"):
        plan(folder, tmp_path, ["q8_0"], False)


REFUSED_LATE: dict[str, tuple[dict[str, Any], str]] = {
    "written, and not opened": ({"architectures": ["StableLmForCausalLM"], "layer_norm_eps": 1e-5,
                                 "partial_rotary_factor": 0.25, "use_parallel_residual": False}, "check_tensor_dims"),
    "not written, as a tensor has no place": ({"architectures": ["GPTNeoXForCausalLM"]}, "Can not map tensor"),
    "not written as the shapes are others": ({"architectures": ["FalconForCausalLM"]}, "Error"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_LATE)
def test_what_llama_cpp_would_not_write_or_open_is_an_input_error_before_training(name: str, tmp_path: Path) -> None:
    """Nothing of it needs the values of weights. It was 14 after training, or 1."""
    changes, said = REFUSED_LATE[name]
    folder = changed_folder(narrow_dir(), tmp_path / "model", lambda f: edit_json(f / "config.json", **changes))
    with pytest.raises(InputError, match=rf"/model/source: .*{said}") as refused:
        plan(folder, tmp_path, ["q8_0"], False)
    assert refused.value.faults[0].hint == "Remove the GGUF exports"


def test_rows_beyond_a_window_that_llama_cpp_has_not_are_refused_before_training(tmp_path: Path) -> None:
    """A Mistral's GGUF saw all of a row, and was refused once it was made (14)."""
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}
    folder = changed_folder(narrow_dir(), tmp_path / "model", lambda f: edit_json(f / "config.json", **mistral))
    with pytest.raises(InputError, match=r"/model/max_seq_length: .*at most 64"):
        plan(folder, tmp_path, ["q8_0"], False, 65)
    header = read_header(tmp_path / "outline.gguf", "k")
    plain = json.loads((folder / "config.json").read_bytes())
    for settings, longest in (
        ({}, 64),
        ({"sliding_window": None}, 2048),
        ({"use_sliding_window": False}, 65),
        ({"layer_types": ["full_attention", "full_attention"]}, 65),
    ):
        (folder / "config.json").write_text(json.dumps(plain | settings))
        _require_window(folder, header, longest)


def widen(folder: Path) -> None:
    """Four layers in the shape of Llama-3.1-8B's, with holes for weights."""
    wide, narrow, inner, layers, words = 4096, 1024, 14_336, 4, 49_152
    edit_json(folder / "config.json", hidden_size=wide, intermediate_size=inner, num_attention_heads=32,
              num_key_value_heads=8, head_dim=128, num_hidden_layers=layers)  # fmt: skip
    shapes = {"model.embed_tokens.weight": [words, wide], "model.norm.weight": [wide]}
    for layer in range(layers):
        of_layer = {"self_attn.q_proj": [wide, wide], "self_attn.k_proj": [narrow, wide],
                    "self_attn.v_proj": [narrow, wide],
                    "self_attn.o_proj": [wide, wide], "mlp.gate_proj": [inner, wide], "mlp.up_proj": [inner, wide],
                    "mlp.down_proj": [wide, inner], "input_layernorm": [wide],
                    "post_attention_layernorm": [wide]}  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.unlink()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)


def test_looking_at_the_outline_of_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    """Its weights are a hole of 2 GB."""
    folder = changed_folder(narrow_dir(), tmp_path / "model", widen)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert plan(folder, tmp_path, ["q8_0"], False).bytes["q8_0"] > 1 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_missing_shard_is_an_artefact_that_failed(tmp_path: Path) -> None:
    def index(folder: Path) -> None:
        names = {
            "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
            "model.norm.weight": "model-00002-of-00002.safetensors",
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")

    folder = changed_folder(narrow_dir(), tmp_path / "model", index)
    with pytest.raises((GateError, InputError)):
        convert(folder, tmp_path / "bf16.gguf", "bf16", "tuned", 1)


def test_the_plan_foresees_every_size_to_the_page(tmp_path: Path) -> None:
    planned = plan(wide_dir(), tmp_path, list(TYPES), False)
    assert list(tmp_path.iterdir()) == []
    convert(wide_dir(), tmp_path / "bf16.gguf", "bf16", "tuned", 1)
    for name in ("q8_0", "q4_k_m", "f16"):
        quantise(tmp_path / "bf16.gguf", tmp_path / name, name, None, 1)
        assert abs((tmp_path / name).stat().st_size - planned.bytes[name]) < 4096
    assert abs((tmp_path / "bf16.gguf").stat().st_size - planned.bytes["bf16"]) < 4096


def _convert_step(target: Path) -> Convert:
    return Convert(narrow_dir(), target, "bf16", "tuned", 1)


def _quantise_step(source: Path, target: Path) -> Quantise:
    return Quantise(source, target, "q8_0", None, 1, "cpu")


def test_it_works_without_home_network_or_writable_folder() -> None:
    """As in the container: a user without a name or HOME, no network if possible, only the target's folder written."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        target, frozen = place / "out", place / "frozen"
        target.mkdir(mode=0o777)
        target.chmod(0o777)
        frozen.mkdir(mode=0o555)
        steps = (_convert_step(target / "bf16.gguf"), _quantise_step(target / "bf16.gguf", target / "q8_0.gguf"))
        (place / "request.json").write_bytes(encode(GgufRequest(steps)))
        command = [
            sys.executable,
            "-P",
            "-B",
            "-m",
            "job.gguf.worker",
            str(place / "request.json"),
            str(target / "result.json"),
        ]
        if os.geteuid() == 0:
            command = ["unshare", "--net", "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *command]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PACKAGE_ROOT), "TMPDIR": str(target)}
        done = subprocess.run(command, cwd=frozen, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        result = json.loads((target / "result.json").read_text())["result"]["steps"]
        assert [step["tensors"] for step in result] == [20, 20]
        assert [file.name for file in place.iterdir() if file.is_file()] == ["request.json"]
        assert list(frozen.iterdir()) == []


def test_a_disk_that_ends_is_not_a_quantised_file(tmp_path: Path) -> None:
    """llama.cpp swallows the error of its stream: the length shows it."""
    convert(narrow_dir(), tmp_path / "bf16.gguf", "bf16", "tuned", 1)
    step = _quantise_step(tmp_path / "bf16.gguf", tmp_path / "q8_0.gguf")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))
    try:
        child = Child(WORKER, GgufRequest((step,)), tmp_path / "child", "q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises((GateError, CapacityError)) as failure:
        child.wait()
    assert "q8_0.gguf" in str(failure.value)


def test_steps_are_answered_in_order(forked_children: None, tmp_path: Path) -> None:
    steps = tuple(GgufPlan(narrow_dir(), tmp_path, [name], False) for name in ("q8_0", "f32"))
    small, large = results(run_child(WORKER, GgufRequest(steps), tmp_path / "child", "plan"))
    assert [list(small.bytes), list(large.bytes)] == [["q8_0"], ["f32"]]
    assert small.bytes["q8_0"] < large.bytes["f32"] / 3
