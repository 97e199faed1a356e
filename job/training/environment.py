"""The environment that the engines see: set before torch and unsloth are imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from job.host.cgroup import usable_cores
from job.host.device import DEVICE_VARIABLE, take_first_card
from job.training.precision import CPU_ENVIRONMENT

# Of the environment: settings of accelerate's launcher, of Unsloth and of vLLM, and number types of products
# that are changed without anybody's notice.
DECIDE_OTHERWISE = (
    "ACCELERATE_",
    "UNSLOTH_",
    "VLLM_",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
)


def prepare_environment(workdir: Path) -> list[str]:
    """Sets what torch and unsloth must find at import (`prepared_environment`); the variables not honoured."""
    given = dict(os.environ)
    prepared = prepared_environment(workdir, given)
    for name in given.keys() - prepared.keys():
        del os.environ[name]
    os.environ.update(prepared)
    take_first_card()
    return sorted(name for name in given if name.startswith(DECIDE_OTHERWISE) and prepared.get(name) != given[name])


def prepared_environment(workdir: Path, given: Mapping[str, str]) -> dict[str, str]:
    """`given` with what the engines are to do: no telemetry, no installs, caches of our own under `workdir` unless it
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
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",  # no code of whatever package has one
        "TOKENIZERS_PARALLELISM": "false",
        # Torch and bitsandbytes bring an OpenMP each; idle threads of one would spin in the other's way
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    placed = {
        "UNSLOTH_COMPILE_LOCATION": caches / "unsloth",
        "TORCHINDUCTOR_CACHE_DIR": caches / "inductor",
        "TRITON_CACHE_DIR": caches / "triton",
        "HF_HOME": caches / "huggingface",
        "VLLM_CACHE_ROOT": caches / "vllm",
    }
    by_device = {
        "cpu": {"CUDA_VISIBLE_DEVICES": "", "UNSLOTH_FORCE_CPU": "1"},
        "gpu": {"UNSLOTH_DISABLE_CPU_FALLBACK": "1"},
    }
    defaults = {"OMP_NUM_THREADS": str(usable_cores())} | {name: str(folder) for name, folder in placed.items()}
    kept = {name: value for name, value in given.items() if name in placed or not name.startswith(DECIDE_OTHERWISE)}
    return defaults | kept | fixed | CPU_ENVIRONMENT | by_device.get(given.get(DEVICE_VARIABLE, ""), {})
