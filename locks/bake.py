"""Makes beforehand what a GPU run would compile at its start: `python locks/bake.py FOLDER`, where the image is built.

FOLDER/unsloth  the trainers that Unsloth writes on import. It still works each one out again and compares, so this
                saves the writing, not the working out.
FOLDER/triton   Triton's one C module, for which every run would otherwise need a compiler and Python's headers.

The job copies both into its own caches (`job.backend.prepare_environment`). No GPU is needed here: a libcuda without a
single function in it is enough to link with, and what was linked finds the real one at run time.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def bake_triton(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as stubs:
        stub = [f"{stubs}/libcuda.so.1", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null"]
        subprocess.run(["gcc", "-shared", "-o", *stub], check=True)  # noqa: S603, S607
        os.environ |= {"TRITON_LIBCUDA_PATH": stubs, "TRITON_CACHE_DIR": str(folder)}
        from triton.backends.nvidia.driver import CudaUtils

        try:
            CudaUtils()
        except ImportError as error:  # built and kept; it cannot be loaded before there is a driver
            print(f"as expected without a driver: {error}")  # noqa: T201
    made = list(folder.glob("*/cuda_utils*.so"))
    if len(made) != 1:
        sys.exit(f"Triton compiled {len(made)} modules instead of one: does this version need a compiler at run time?")


def bake_unsloth(folder: Path) -> None:
    os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_LOCATION": str(folder), "UNSLOTH_DISABLE_STATISTICS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    import unsloth  # noqa: F401
    from unsloth.models.rl import patch_trl_rl_trainers

    patch_trl_rl_trainers()
    if not (folder / "UnslothSFTTrainer.py").is_file():
        sys.exit("Unsloth wrote no SFT trainer: where does this version keep it?")
    shutil.rmtree(folder / ".locks")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if importlib.util.find_spec("triton"):
        bake_triton(target / "triton")
        bake_unsloth(target / "unsloth")
    else:
        target.mkdir(parents=True)  # the CPU backend takes TRL's trainers as they are and compiles nothing
