"""The command on a GPU of which it may use only so much: what a smaller card does.

python -m tests.gpu.small_gpu GIB run SPEC…
"""

from __future__ import annotations

import sys

import torch

from job.__main__ import main

if __name__ == "__main__":
    torch.cuda.set_per_process_memory_fraction(
        float(sys.argv[1]) * 2**30 / torch.cuda.get_device_properties(0).total_memory
    )
    sys.exit(main(sys.argv[2:]))
