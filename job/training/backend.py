"""The training engines at one seam; the only module that imports unsloth.

Two real implementations: `UnslothBackend` (default; fused kernels on a GPU, stock transformers with Unsloth's patches
on the CPU) and `PeftBackend` (transformers + PEFT + bitsandbytes, the reference). Both take a local directory, never a
Hub id: so the revision holds, offline loading works and a pre-quantised mirror cannot slip in.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from job.errors import InputError, classify
from job.host.imports import collector_paused
from job.spec import LoraSpec, ModelSpec
from job.training.checks import (
    check_complete,
    check_packed_shapes,
    check_precision,
    check_targets,
)
from job.training.kernels.placed import Placed
from job.training.methods import METHODS
from job.training.one_trainer import only_trainer
from job.training.precision import compute_dtype, keep_layout, quantisation

LOADER_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    ImportError,
)


class Backend(Protocol):
    """What the run needs of an engine. `model` is a transformers or PEFT model, opaque to the rest of the job."""

    device: str  # "cuda" or "cpu"
    loaded_with: str | bool  # the checkpointing that `load` was given

    def load(self, model_dir: Path, model: ModelSpec, lora: LoraSpec | None, gradient_checkpointing: str | bool) -> Any:
        """The base model from `model_dir`, with a fresh adapter unless every weight is trained.

        Raises `CapacityError` where the asked precision is not available on this device.
        """
        ...

    def keep_activations(self, model: Any, layers: int) -> None:
        """Has so many layers, evenly spaced, keep what their backward pass needs; the others compute it again. For a
        model that was loaded with checkpointing, before or between steps.
        """
        ...

    def adapt(self, trainer_class: type) -> type:
        """A trainer whose loss is a kernel, as this engine runs it."""
        ...

    def place_kernels(self, model: Any, compute: str) -> Placed:
        """Puts the kernels of `job.training.kernels` on the layers that they can compute; none for "stock"."""
        ...

    def for_training(self, model: Any) -> None: ...

    def for_inference(self, model: Any) -> None: ...


def open_backend(name: str, device: str, method: str) -> Backend:
    """The engine called `name` on "cuda" or "cpu", for trainings by that method."""
    return UnslothBackend(device, method) if name == "unsloth" else PeftBackend(device)


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


@contextmanager
def loading() -> Iterator[None]:
    """What the loaders cannot make of a model's files as an `InputError`, whatever class they say it in; its
    traceback goes to stderr.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (*LOADER_ERRORS, StrictDataclassError) as error:
        if classify(error).exit_code != 1:
            raise
        traceback.print_exception(error)
        raise InputError(
            "the model cannot be loaded",
            where="/model/source",
            found=f"{type(error).__name__}: {error}",
            expected="files that transformers loads",
            hint="Load it with transformers' AutoModelForCausalLM to see more",
        ) from error


class UnslothBackend:
    """Unsloth's loader and patched TRL trainer."""

    def __init__(self, device: str, method: str) -> None:
        self.device = device
        self.loaded_with: str | bool = False
        with collector_paused(), only_trainer(METHODS[method].trl_name.lower()):
            import unsloth  # noqa: F401  before trl, transformers and peft, or its patches are lost

    def load(self, model_dir: Path, model: ModelSpec, lora: LoraSpec | None, gradient_checkpointing: str | bool) -> Any:
        from unsloth import FastLanguageModel

        self.loaded_with = gradient_checkpointing
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

    def keep_activations(self, model: Any, layers: int) -> None:
        from unsloth.models._utils import skip_checkpointing
        from unsloth_zoo import gradient_checkpointing as offloading

        offloading.FIRST_PASS, offloading.LAST_GC_INDEX, offloading.CURRENT_GC_INDEX = True, 0, 0  # it counts layers
        for module in model.modules():
            module.__dict__.pop("_unsloth_skip_checkpoint", None)
        skip_checkpointing(model, layers)

    def adapt(self, trainer_class: type) -> type:
        return trainer_class  # trl's own classes are patched

    def place_kernels(self, model: Any, compute: str) -> Placed:
        if self.device == "cpu" or compute == "stock":
            return Placed()
        from unsloth.kernels.utils import fast_dequantize

        from job.training.kernels.layers import place

        return place(model, fast_dequantize, fp8=compute == "fp8")

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
        self.loaded_with: str | bool = False

    def load(self, model_dir: Path, model: ModelSpec, lora: LoraSpec | None, gradient_checkpointing: str | bool) -> Any:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, set_seed

        self.loaded_with = gradient_checkpointing
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

    def keep_activations(self, model: Any, layers: int) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        kept = {(number + 1) * len(blocks) // layers - 1 for number in range(layers)}
        for number, block in enumerate(blocks):
            block.gradient_checkpointing = number not in kept

    def adapt(self, trainer_class: type) -> type:
        """TRL's own loss is a Triton kernel, which CPUs do not have."""
        from transformers import Trainer

        if self.device == "cuda":
            return trainer_class
        return type(trainer_class.__name__, (trainer_class,), {"compute_loss": Trainer.compute_loss})

    def place_kernels(self, model: Any, compute: str) -> Placed:
        return Placed()

    def for_training(self, model: Any) -> None:
        model.train()
        model.config.use_cache = False

    def for_inference(self, model: Any) -> None:
        model.eval()
        model.config.use_cache = True
