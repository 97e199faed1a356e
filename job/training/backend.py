"""The training engines behind one seam; the only module that imports unsloth.

Two real implementations: `UnslothBackend` (default; fused kernels on a GPU, stock transformers with Unsloth's patches
on the CPU) and `PeftBackend` (transformers + PEFT + bitsandbytes, the reference). Both take a local directory, never a
Hub id: so the revision holds, offline loading works and a pre-quantised mirror cannot slip in.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from job.errors import CapacityError, Fault, InputError, classify
from job.host.cgroup import usable_cores
from job.host.device import DEVICE_VARIABLE, choose_device
from job.host.fork_server import collector_paused
from job.spec import LoraSpec, ModelSpec
from job.training.precision import CPU_ENVIRONMENT, compute_dtype, keep_layout, name_of, quantisation

LOADERS_SAY = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
# Of the environment: settings of accelerate's launcher and of Unsloth, and number types of products behind
# everybody's back.
DECIDE_OTHERWISE = (
    "ACCELERATE_",
    "UNSLOTH_",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
)


class Backend(Protocol):
    """What the run needs of an engine. `model` is a transformers or PEFT model, opaque to the rest of the job."""

    device: str  # "cuda" or "cpu"

    def load(self, model_dir: Path, model: ModelSpec, lora: LoraSpec | None, gradient_checkpointing: str | bool) -> Any:
        """The base model from `model_dir`, with a fresh adapter unless every weight is trained.

        Raises `CapacityError` where the asked precision cannot be had on this device.
        """
        ...

    def trainer_classes(self) -> tuple[type, type]:
        """(SFTConfig, SFTTrainer) as this engine patches them."""
        ...

    def for_training(self, model: Any) -> None: ...

    def for_inference(self, model: Any) -> None: ...


def open_backend(name: str) -> Backend:
    """The engine called `name`. Raises `DeviceError` if the device is not there."""
    device = choose_device()
    return UnslothBackend(device) if name == "unsloth" else PeftBackend(device)


def prepare_environment(workdir: Path) -> list[str]:
    """Sets what must be set before torch and unsloth are imported (`prepared_environment`); the variables that are
    not honoured.
    """
    given = dict(os.environ)
    prepared = prepared_environment(workdir, given)
    for name in given.keys() - prepared.keys():
        del os.environ[name]
    os.environ.update(prepared)
    return sorted(name for name in given if name.startswith(DECIDE_OTHERWISE) and prepared.get(name) != given[name])


def prepared_environment(workdir: Path, given: Mapping[str, str]) -> dict[str, str]:
    """`given` with what the engines are told: no telemetry, no installs, caches of our own under `workdir` unless it
    says where.

    Without what would have them compute otherwise than the spec says.
    """
    caches = workdir / "cache"
    fixed = {
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_AUTO_INSTALL": "0",
        "UNSLOTH_LLAMA_CPP_OFFLINE": "1",
        "UNSLOTH_DISABLE_LLM_COMPRESSOR_AUTOINSTALL": "1",
        "UNSLOTH_PREWARM_HUB_CACHE": "0",
        "UNSLOTH_MEGA_CACHE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Torch and bitsandbytes bring an OpenMP each; idle threads of one would spin in the other's way
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    placed = {
        "UNSLOTH_COMPILE_LOCATION": caches / "unsloth",
        "TORCHINDUCTOR_CACHE_DIR": caches / "inductor",
        "TRITON_CACHE_DIR": caches / "triton",
        "HF_HOME": caches / "huggingface",
    }
    by_device = {
        "cpu": {"CUDA_VISIBLE_DEVICES": "", "UNSLOTH_FORCE_CPU": "1"},
        "gpu": {"UNSLOTH_DISABLE_CPU_FALLBACK": "1"},
    }
    defaults = {"OMP_NUM_THREADS": str(usable_cores())} | {name: str(folder) for name, folder in placed.items()}
    kept = {name: value for name, value in given.items() if name in placed or not name.startswith(DECIDE_OTHERWISE)}
    return defaults | kept | fixed | CPU_ENVIRONMENT | by_device.get(given.get(DEVICE_VARIABLE, ""), {})


def adapter_options(lora: LoraSpec) -> dict[str, Any]:
    """`LoraSpec` in PEFT's words; options that switch off fused kernels are named only when asked for."""
    options: dict[str, Any] = {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        "modules_to_save": list(lora.modules_to_save) or None,
        "use_rslora": lora.rslora,
        "bias": lora.bias,
        "init_lora_weights": True if lora.init == "default" else lora.init,
    }
    return options | ({"use_dora": True} if lora.dora else {})


def require_compute_dtype(model: Any, device: str) -> str:
    """The number type that `model` computes in, read back from it. Raises `CapacityError` if it is not the device's
    own.
    """
    found, wanted = (name_of(dtype) for dtype in (model.get_input_embeddings().weight.dtype, compute_dtype(device)))
    if device == "cpu" and found != wanted:  # on a GPU, an engine may keep a part of the model in fp32
        raise CapacityError(
            Fault(
                "the engine computes in another number type on this device",
                where="/model/backend",
                found=found,
                expected=wanted,
            )
        )
    return found


def check_precision(model: Any, spec: ModelSpec, device: str) -> None:
    """Compares what was loaded with what was asked: engines fall back to 16-bit with no more than a message."""
    found = (
        "4bit"
        if getattr(model, "is_loaded_in_4bit", False)
        else "8bit"
        if getattr(model, "is_loaded_in_8bit", False)
        else "16bit"
    )
    wanted = "16bit" if spec.precision == "full" else spec.precision
    if found != wanted:
        raise CapacityError(
            Fault(
                f"the model was loaded in another precision on this {device}",
                where="/model/precision",
                found=found,
                expected=wanted,
                hint="8bit needs a GPU; 4bit needs a base that is not quantised already",
            )
        )


@contextmanager
def loading() -> Iterator[None]:
    """What the loaders cannot make of a model's files as an `InputError`, whatever class they say it in; its
    traceback goes to stderr.
    """
    try:
        yield
    except LOADERS_SAY as error:
        if classify(error).exit_code != 1:
            raise
        traceback.print_exception(error)
        raise InputError(
            Fault(
                "the model cannot be loaded",
                where="/model/source",
                found=f"{type(error).__name__}: {error}",
                expected="files that transformers loads",
                hint="Load it with transformers' AutoModelForCausalLM to see more",
            )
        ) from error


def check_complete(missing: Iterable[str]) -> None:
    """Raises `InputError` for tensors that the files lack: the loader makes them up at random, with a warning."""
    names = sorted(
        name for name in missing if not name.endswith((".SCB", ".weight_format"))
    )  # made by 8-bit loading itself
    if names:
        found = f"{len(names)} tensors missing, first {names[0]}"
        raise InputError(
            Fault(
                "the weights are not those of this model",
                where="/model/source",
                found=found,
                expected="every tensor that config.json implies",
            )
        )


def check_packed_shapes(model: Any) -> None:
    """Raises `InputError` for a matrix of another shape than its layer: bitsandbytes packs it all the same, and the
    first step fails.
    """
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        state = getattr(module.weight, "quant_state", None) if isinstance(module, Linear4bit) else None
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features):
            expected = f"{(module.out_features, module.in_features)}, as config.json implies"
            raise InputError(
                Fault(
                    "a weight has another shape than its layer",
                    where="/model/source",
                    found=f"{name}: {tuple(state.shape)}",
                    expected=expected,
                )
            )


def check_targets(model: Any, lora: LoraSpec) -> None:
    """Raises `InputError` for a target or a module to save that the model does not have, naming those it has."""
    names = [name for name, _ in model.named_modules()]
    asked = (
        []
        if isinstance(lora.targets, str)
        else [(f"/lora/targets/{i}", target) for i, target in enumerate(lora.targets)]
    )
    asked += [(f"/lora/modules_to_save/{i}", module) for i, module in enumerate(lora.modules_to_save)]
    missing = [
        (pointer, word) for pointer, word in asked if not any(n == word or n.endswith(f".{word}") for n in names)
    ]
    if missing:
        from torch.nn import Linear

        linear = sorted(
            {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, Linear)}
        )
        raise InputError(
            *(
                Fault("the model has no such layer", where=pointer, found=word, expected=f"one of {', '.join(linear)}")
                for pointer, word in missing
            )
        )


class UnslothBackend:
    """Unsloth's loader and patched TRL trainer."""

    def __init__(self, device: str) -> None:
        self.device = device
        with collector_paused():
            import unsloth  # noqa: F401  before trl, transformers and peft, or its patches are lost

    def load(self, model_dir: Path, model: ModelSpec, lora: LoraSpec | None, gradient_checkpointing: str | bool) -> Any:
        from unsloth import FastLanguageModel

        loaded, _ = FastLanguageModel.from_pretrained(
            model_name=str(model_dir),
            max_seq_length=model.max_seq_length,
            dtype=compute_dtype(self.device),
            load_in_4bit=model.precision == "4bit",
            load_in_8bit=model.precision == "8bit",
            full_finetuning=model.precision == "full",
            use_gradient_checkpointing=gradient_checkpointing,
            use_exact_model_name=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        check_precision(loaded, model, self.device)
        check_packed_shapes(loaded)
        if lora is None:
            return loaded
        check_targets(loaded, lora)
        return FastLanguageModel.get_peft_model(
            loaded, **adapter_options(lora), random_state=lora.seed, use_gradient_checkpointing=gradient_checkpointing
        )

    def trainer_classes(self) -> tuple[type, type]:
        from trl import SFTConfig, SFTTrainer

        return SFTConfig, SFTTrainer

    def for_training(self, model: Any) -> None:
        from unsloth import FastLanguageModel

        FastLanguageModel.for_training(model)

    def for_inference(self, model: Any) -> None:
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(model)


class PeftBackend:
    """Plain transformers, PEFT and bitsandbytes: no file of Unsloth is imported."""

    def __init__(self, device: str) -> None:
        self.device = device

    def load(self, model_dir: Path, model: ModelSpec, lora: LoraSpec | None, gradient_checkpointing: str | bool) -> Any:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, set_seed

        dtype = compute_dtype(self.device)
        loaded, report = AutoModelForCausalLM.from_pretrained(
            model_dir,
            output_loading_info=True,
            dtype=dtype,
            quantization_config=quantisation(model.precision, dtype),
            device_map={"": self.device},
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
        check_complete(report["missing_keys"])
        check_precision(loaded, model, self.device)
        check_packed_shapes(loaded)
        keep_layout(loaded)
        loaded.config.use_cache = False
        if gradient_checkpointing:
            loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is None:
            return loaded
        check_targets(loaded, lora)
        if gradient_checkpointing:
            loaded.enable_input_require_grads()
        set_seed(lora.seed)
        return get_peft_model(loaded, LoraConfig(task_type="CAUSAL_LM", **adapter_options(lora)))

    def trainer_classes(self) -> tuple[type, type]:
        from transformers import Trainer
        from trl import SFTConfig, SFTTrainer

        if self.device == "cuda":
            return SFTConfig, SFTTrainer
        # TRL's own loss is a Triton kernel, which CPUs do not have
        return SFTConfig, type("SFTTrainer", (SFTTrainer,), {"compute_loss": Trainer.compute_loss})

    def for_training(self, model: Any) -> None:
        model.train()
        model.config.use_cache = False

    def for_inference(self, model: Any) -> None:
        model.eval()
        model.config.use_cache = True
