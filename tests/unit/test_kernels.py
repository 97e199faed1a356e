"""The training kernels in plain torch, held against their reference in fp64, and what puts them on a model.

What only a GPU has of them, the kernels in Triton, is held against the same by `tests.gpu.kernels`, and by every run
before it trains.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._dynamo.utils import counters

from job.errors import CapacityError, SpecError
from job.host.log import Log
from job.plan.cards import CARDS
from job.plan.duration import has_kernels
from job.plan.model_size import ModelSize
from job.plan.require import require_device, require_fp8
from job.preview.reckoning import on_card, scheduler
from job.training.kernels import reference
from job.training.kernels.adapters import Adapters, LowRank, watch_steps
from job.training.kernels.check import _largest
from job.training.kernels.fp8 import LARGEST, product, scaled_rows
from job.training.kernels.frozen import Dense, Frozen, InFp8, Packed
from job.training.kernels.gated import Gated, Layer
from job.training.kernels.gating import gate
from job.training.kernels.layers import place
from job.training.kernels.placed import Placed, kernels
from job.training.kernels.projections import Projections
from tests.specs import parse

WIDTH, INNER, KEYS, TOKENS = 64, 96, 32, 40
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def weights(*shapes: tuple[int, int], dtype: Any = torch.float64) -> list[Tensor]:
    torch.manual_seed(len(shapes))
    return [torch.randn(shape, dtype=dtype) / shape[1] ** 0.5 for shape in shapes]


def adapters(frozen: list[Tensor], rank: int, dtype: Any = torch.float64) -> Adapters:
    torch.manual_seed(rank)
    parts = [
        LowRank(
            torch.randn(rank, each.shape[1], dtype=torch.float64).requires_grad_(),
            torch.randn(each.shape[0], rank, dtype=torch.float64).requires_grad_(),
            0.5 + number,
        )
        for number, each in enumerate(frozen)
    ]
    return Adapters(parts, dtype).fresh()


def gradients(outputs: Any, of: list[Tensor]) -> list[Tensor]:
    """For gradients of the outputs that are the same at each call."""
    torch.manual_seed(7)
    return list(torch.autograd.grad(list(outputs), of, [torch.randn_like(each) for each in outputs]))


def distance(found: Tensor, should: Tensor) -> float:
    found, should = found.detach().double(), should.detach().double()
    return float((found - should).norm() / should.norm())


@pytest.mark.parametrize("outputs", [(WIDTH,), (WIDTH, KEYS, KEYS)])
@pytest.mark.parametrize("rank", [1, 4])
def test_projections_equal_the_reference(outputs: tuple[int, ...], rank: int) -> None:
    own = weights(*((each, WIDTH) for each in outputs))
    whole, beside = torch.cat(own), adapters(own, rank)
    x = torch.randn(2, TOKENS // 2, WIDTH, dtype=torch.float64, requires_grad=True)
    of = [x, *beside.weights]
    found, should = (
        Projections.apply(x, Dense(own), beside, *beside.weights),
        reference.projected(x, whole, beside.parts),
    )
    assert [each.shape for each in found] == [each.shape for each in should]
    assert max(map(distance, found, should)) < 1e-14
    assert max(map(distance, gradients(found, of), gradients(should, of))) < 1e-14


@pytest.mark.parametrize("rank", [1, 4])
def test_the_gated_layer_equals_the_reference(rank: int) -> None:
    wide, down = weights((INNER, WIDTH), (INNER, WIDTH)), weights((WIDTH, INNER))
    layer = Layer(Dense(wide), adapters(wide, rank), Dense(down), adapters(down, rank))
    x = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    of = [x, *layer.weights]
    should = reference.gated(x, torch.cat(wide), layer.wide_adapters.parts, down[0], layer.down_adapters.parts[0])
    found = Gated.apply(x, layer.fresh(), *layer.weights)
    assert distance(found, should) < 1e-14
    assert max(map(distance, gradients([found], of), gradients([should], of))) < 1e-14


def test_a_fresh_adapter_is_not_rounded_away() -> None:
    """Its part of gate and up is far below a step of 16 bits: added in 16 bits, as the engine adds, most is lost."""
    wide, narrow, x = (
        weights((INNER, WIDTH), (INNER, WIDTH)),
        torch.bfloat16,
        torch.randn(400, WIDTH, dtype=torch.float64),
    )
    parts = adapters(wide, 4).parts
    drawn = [torch.randn(part.b.shape, dtype=torch.float64) for part in parts]

    def outputs(step: float) -> list[Tensor]:
        """With such a b: exactly, by the kernel's sums, and by the engine's."""
        for part, numbers in zip(parts, drawn, strict=True):
            part.b.data = step * numbers
        copies, flat = Adapters(parts, narrow).fresh(), x.to(narrow)
        small, whole = flat @ copies.a.t(), flat @ torch.cat(wide).to(narrow).t()
        ours = gate(whole, small, copies.b)
        opened, up = whole.addmm_(small, copies.b.t()).chunk(2, 1)
        exact = reference.projected(x, torch.cat(wide), parts)
        return [nn.functional.silu(a).mul(b).detach().double() for a, b in (exact, (opened, up))] + [ours.double()]

    should, engines, kernels = [
        (after - before).flatten() for after, before in zip(outputs(2e-5), outputs(0.0), strict=True)
    ]
    kept = [float(found @ should / (should @ should)) for found in (kernels, engines)]
    assert kept[0] == pytest.approx(1, abs=0.1)
    assert kept[1] < 0.5


def test_packed_weights_are_put_together_for_a_product() -> None:
    """By whatever makes them 16 bits wide: here a scale a matrix."""

    class State:
        def __init__(self, shape: Any, scale: float) -> None:
            self.shape, self.scale = shape, scale

    def widen(weight: Tensor, state: State, out: Tensor) -> None:
        out.copy_(weight.view(state.shape) * state.scale)

    own = weights((WIDTH, WIDTH), (KEYS, WIDTH))
    packed = Packed([(each.reshape(-1), State(each.shape, 2.0)) for each in own], widen, torch.float64)
    x, by = torch.randn(TOKENS, WIDTH, dtype=torch.float64), torch.randn(TOKENS, WIDTH + KEYS, dtype=torch.float64)
    assert torch.equal(packed.output(x), x @ (2 * torch.cat(own)).t())
    assert torch.equal(packed.gradient(by), by @ (2 * torch.cat(own)))


def test_every_way_to_store_weights_adds_a_bias() -> None:
    own, bias = weights((WIDTH, WIDTH), dtype=torch.float32), torch.arange(WIDTH, dtype=torch.float32)
    state = SimpleNamespace(shape=own[0].shape)

    def widen(weight: Tensor, _: Any, out: Tensor) -> None:
        out.copy_(weight)

    x, by = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    ways: list[tuple[Frozen, Frozen]] = [
        (Packed([(own[0], state)], widen, torch.float32, bias), Packed([(own[0], state)], widen, torch.float32)),
        (Dense(own, bias), Dense(own)),
        (InFp8(own[0], bias), InFp8(own[0])),
    ]
    for with_bias, without in ways:
        assert distance(with_bias.output(x), without.output(x) + bias) < 1e-6
        assert torch.equal(with_bias.gradient(by), without.gradient(by))


def test_dense_weights_share_the_memory_of_the_model() -> None:
    own = weights((WIDTH, WIDTH), (KEYS, WIDTH))
    before = [each.clone() for each in own]
    frozen = Dense(own)
    assert all(map(torch.equal, own, before))
    assert own[1].data_ptr() == frozen.weights()[WIDTH:].data_ptr(), "no second copy"


def test_scaled_rows_are_off_by_a_sixteenth_at_most() -> None:
    """e4m3 has three bits after the first: half a step of them is a sixteenth of the number; far below the largest of
    the row, steps do not become smaller any more."""
    torch.manual_seed(0)
    x = torch.randn(50, 200) * torch.logspace(-8, 8, 50)[:, None]
    x[3] = 0
    scaled = scaled_rows(x)
    error = (scaled.given() - x).abs()
    floor = x.abs().amax(1, keepdim=True) / LARGEST * 2**-10
    assert bool((error <= torch.maximum(x.abs() / 16, floor) * 1.0001).all())
    assert torch.equal(scaled.given()[3], torch.zeros(200))
    assert bool((scaled.numbers.float().abs().amax(1)[4:] == LARGEST).all()), (
        "the largest of a row uses the whole range"
    )


def test_products_in_fp8_are_those_of_their_rounded_numbers() -> None:
    (own,) = weights((WIDTH, INNER), dtype=torch.float32)
    x = torch.randn(TOKENS, INNER)
    found = product(scaled_rows(x), scaled_rows(own), torch.float32)
    assert distance(found, scaled_rows(x).given() @ scaled_rows(own).given().t()) < 1e-6
    assert 0.01 < distance(found, x @ own.t()) < 0.05
    frozen: Frozen = InFp8(own)
    by = torch.randn(TOKENS, WIDTH)
    assert distance(frozen.output(x), x @ own.t()) < 0.05
    assert distance(frozen.gradient(by), by @ own) < 0.05


@pytest.mark.parametrize("change", ["step", "copy", "swap"])
def test_copies_of_the_adapters_follow_what_changes_them(change: str) -> None:
    """An optimiser, a checkpoint that is loaded, weights that are exchanged."""
    watch_steps()
    own = weights((WIDTH, WIDTH), (KEYS, WIDTH))
    beside = adapters(own, 4)
    part = beside.parts[1]
    if change == "step":
        optimizer = torch.optim.SGD([part.b], lr=1.0)
        part.b.grad = torch.ones_like(part.b)
        version = part.b._version
        optimizer.step()
        torch._C._autograd._unsafe_set_version_counter((part.b,), (version,))  # as fused optimisers leave it
    elif change == "copy":
        with torch.no_grad():
            part.b.copy_(torch.zeros_like(part.b))
    else:
        part.b.data = torch.ones_like(part.b)
    beside.fresh()
    assert torch.equal(beside.b[WIDTH:, 4:], part.b * part.scale)
    assert torch.equal(beside.b[:WIDTH, 4:], torch.zeros(WIDTH, 4, dtype=torch.float64)), "projections do not mix"


class Attention(nn.Module):
    """In the outlines that the engine's models have: it calls what has been put on it."""

    def __init__(self, biased: str = "") -> None:
        super().__init__()
        for name, width in (("q", WIDTH), ("k", KEYS), ("v", KEYS), ("o", WIDTH)):
            setattr(self, f"{name}_proj", nn.Linear(WIDTH, width, bias=name in biased))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.apply_qkv(self, x)  # type: ignore[operator]
        return self.apply_o(self, q + torch.cat([k, v], -1))  # type: ignore[operator]


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)


def apply_lora_qkv(attention: Any, x: Tensor) -> Any:
    return attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)


def original_apply_qkv(attention: Any, x: Tensor) -> Any:
    return apply_lora_qkv(attention, x)


def apply_lora_o(attention: Any, x: Tensor) -> Any:
    return attention.o_proj(x)


def apply_lora_mlp_swiglu(layer: Any, x: Tensor) -> Any:
    return layer.down_proj(nn.functional.silu(layer.gate_proj(x)) * layer.up_proj(x))


def model(biased: str = "", **changes: Any) -> Any:
    """One layer in bf16 with adapters, computed by functions of the engine's names, which are PEFT's own sums."""
    torch.manual_seed(0)
    blocks = nn.Sequential(Attention(biased), FeedForward()).bfloat16()
    options: dict[str, Any] = {"r": 8, "target_modules": TARGETS, "init_lora_weights": False} | changes
    made = get_peft_model(blocks, LoraConfig(**options))
    attention, layer = made.base_model.model
    attention.apply_qkv, attention.apply_o = original_apply_qkv if biased else apply_lora_qkv, apply_lora_o
    layer.forward = MethodType(apply_lora_mlp_swiglu, layer)
    return made.train()


def step(made: Any) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    made.zero_grad()
    y = made(torch.randn(1, TOKENS, WIDTH).bfloat16())
    y.float().square().sum().backward()
    return y.detach(), [each.grad.clone() for each in made.parameters() if each.requires_grad]


@pytest.mark.parametrize("biased", ["", "qkv", "q"])
@pytest.mark.parametrize(("fp8", "limit"), [(False, 0.02), (True, 0.15)])
def test_placed_kernels_compute_what_the_layers_did(fp8: bool, limit: float, biased: str) -> None:
    """Queries, keys and values with a bias, as Qwen2 has it, the engine computes one by one."""
    made = model(biased)
    y, by = step(made)
    placed = place(made, lambda *_: None, fp8)
    assert (placed.compute, len(placed), placed.reason) == ("fp8" if fp8 else "fast", 3, None)
    assert set(placed.differences) == {"apply_qkv", "apply_o", "forward"}
    found, by_found = step(made)
    assert 0 < distance(found, y) < limit
    assert max(map(distance, by_found, by)) < limit


def test_an_evaluation_and_a_model_without_its_adapter_are_the_engines_own() -> None:
    """What is measured belongs to what is delivered, and a reference has no adapter: to the last bit as before."""
    made, x = model(), torch.randn(1, TOKENS, WIDTH).bfloat16()
    with made.disable_adapter():
        bare = made(x)
    own = made.eval()(x)
    placed = place(made, lambda *_: None, fp8=True)
    assert torch.equal(made(x), own)
    with made.train().disable_adapter():
        assert torch.equal(made(x), bare)
    assert not torch.equal(made(x), own), "in training it is another product"
    placed.take_away()
    assert torch.equal(made(x), own)
    assert placed.compute == "stock"


def test_a_kernel_that_disagrees_is_not_used() -> None:
    made = model()
    with torch.no_grad():
        made.base_model.model[1].down_proj.base_layer.weight[0, 0] = torch.inf
    placed = place(made, lambda *_: None, fp8=False)
    assert (placed.compute, len(placed)) == ("stock", 0)
    assert placed.reason == "forward differs by nan from what it should compute, limit 0.03"
    assert math.isfinite(placed.outcome()["difference"])
    assert "difference" not in Placed(differences={"forward": math.nan}).outcome(), "JSON has no such number"
    assert made.base_model.model[0].apply_qkv is apply_lora_qkv


def test_a_kernel_that_cannot_be_tried_is_not_used() -> None:
    """As on a card that a compiler does not know."""

    class State:
        quant_type, shape, dtype = "nf4", (WIDTH, WIDTH), torch.bfloat16

    def unknown_card(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available")

    made = model()
    made.base_model.model[0].o_proj.base_layer.weight.quant_state = State()
    placed = place(made, unknown_card, fp8=False)
    assert (placed.compute, len(placed)) == ("stock", 0)
    reason = "apply_o cannot be tried: RuntimeError: no kernel image is available"
    assert placed.outcome() == {"difference": placed.differences["apply_qkv"], "reason": reason}
    assert made.base_model.model[0].apply_qkv is apply_lora_qkv


def test_a_gradient_that_is_no_number_is_seen_wherever_it_is() -> None:
    """Python's own max goes past it."""
    x = [torch.ones(2, requires_grad=True) for _ in range(2)]
    assert math.isnan(_largest([x[0] * 2, x[1] * math.nan], [x[0] * 2, x[1]], x, [torch.ones(2)] * 2))


@pytest.mark.parametrize("name", ["k_proj", "up_proj", "down_proj"])
def test_single_matrices_that_are_stored_in_another_way_stay_out(name: str) -> None:
    """As in bases in NF4 that keep some of them in 16 bits. What is multiplied by itself may be stored by itself."""
    made = model()
    for part in made.base_model.model:
        if hasattr(part, name):
            weight = getattr(part, name).base_layer.weight
            weight.quant_state = SimpleNamespace(quant_type="nf4", shape=weight.shape, dtype=torch.bfloat16)

    def widen(weight: Tensor, state: Any, out: Tensor) -> None:
        out.copy_(weight)

    y, _ = step(made)
    placed = place(made, widen, fp8=False)
    assert (len(placed), placed.reason) == (3 if name == "down_proj" else 2, None)
    assert distance(step(made)[0], y) < 0.02


def test_layers_with_kernels_are_not_compiled_each_by_itself() -> None:
    """The engine's own code, of which one graph does for all of its layers, wraps the class of this one."""
    spec = find_spec("unsloth")
    assert spec is not None
    assert spec.origin is not None
    engine = load_by_path(Path(spec.origin).parent / "models" / "_block_compile.py")

    class Block(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)

    made = model()
    made.base_model.model.__class__ = Block
    engine._wrap(Block, {})
    block, x = made.base_model.model, torch.randn(1, TOKENS, WIDTH).bfloat16()
    placed = place(made, lambda *_: None, fp8=False)
    assert len(placed) == 3
    assert block.__dict__["_unsloth_block_mode"] == engine._OFF
    before = dict(counters["stats"])
    made(x)
    assert dict(counters["stats"]) == before, "nothing was traced"
    placed.take_away()
    assert "_unsloth_block_mode" not in block.__dict__


def load_by_path(path: Path) -> Any:
    """Without its package, which wants a GPU."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_where_no_layer_fits_the_log_says_so() -> None:
    said = StringIO()

    class Engine:
        def place_kernels(self, *_: Any) -> Placed:
            return place(nn.Linear(2, 2), lambda *_: None, fp8=True)

    with kernels(cast(Any, Engine()), None, "fp8", Log(said)) as compute:
        assert compute == "stock"
    assert (
        json.loads(said.getvalue()).items()
        >= {"event": "kernels", "modules": 0, "reason": "no layer has a form that they know"}.items()
    )


@pytest.mark.parametrize("changes", [
    {"lora_dropout": 0.1}, {"bias": "lora_only", "lora_bias": True}, {"target_modules": ["q_proj"]}, {"use_dora": True},
    {"bias": "all", "biased": "qkvo", "target_modules": TARGETS[:4]},
    {"rank_pattern": {"k_proj": 4, "o_proj": 2, "up_proj": 4}},
])  # fmt: skip
def test_layers_of_other_adapters_are_left_to_the_engine(changes: dict[str, Any]) -> None:
    assert len(place(model(**changes), lambda *_: None, fp8=False)) == ("rank_pattern" in changes), (
        "an output has one rank"
    )


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"/model/backend": "peft"}, "backend peft"),
        ({"/model/precision": "8bit"}, "precision 8bit"),
        ({"/lora": {"dropout": 0.1}}, "lora.dropout 0.1"),
        ({"/lora": {"dora": True}}, "lora.dora"),
        ({"/lora": {"bias": "all"}}, "lora.bias all"),
        ({"/lora": {"targets": ["q_proj", "v_proj"]}}, "lora.targets q_proj, v_proj"),
    ],
)
def test_fp8_is_refused_where_it_would_be_asked_for_in_vain(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(SpecError, match=rf'/training/compute: .*"fp8" with {found}'):
        parse({"/training/compute": "fp8", **changes})
    assert parse({"/training/compute": "fp8"}).training.compute == "fp8"
    assert parse({"/training/compute": "fp8", "/lora": {"targets": ["q_proj", "o_proj"]}}).training.compute == "fp8"
    assert parse({}).training.compute == "auto"


@pytest.mark.parametrize("capability", ["8.9", "9.0", "12.0"])
def test_cards_that_multiply_in_8_bits_may(capability: str) -> None:
    require_fp8(capability)


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6"])
def test_older_cards_are_refused_before_an_engine_is_imported(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.plan.require.gpu_capability", lambda: capability)  # what the driver would say
    with pytest.raises(CapacityError, match=rf"/training/compute: .*found fp8 on compute capability {capability}"):
        require_device(parse({"/training/compute": "fp8"}), "cuda")
    require_device(parse({}), "cuda")


def test_a_plan_in_fp8_names_the_cards_that_cannot() -> None:
    spec = parse({"/training/compute": "fp8"})
    size = ModelSize(1_235_814_400, 2048, 16, 128_256, quantised=False, local=False, origin="")
    verdicts = {key: on_card(spec, size, scheduler(spec, [100] * 64, 1), 1.0, key, {}).fits for key in CARDS}
    older = {"t4", "a10", "rtx3090", "a100-40", "a100-80"}
    assert {key for key, verdict in verdicts.items() if verdict == "no fp8"} == older
    assert set(verdicts.values()) == {"yes", "no fp8"}


def test_the_engine_alone_is_planned_without_what_the_kernels_save() -> None:
    assert [has_kernels(parse({"/training/compute": how})) for how in ("stock", "auto", "fp8")] == [False, True, True]
    assert not has_kernels(parse({"/model/backend": "peft"}))
    assert not has_kernels(parse({"/lora": {"dropout": 0.1}}))
