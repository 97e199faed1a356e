"""What anybody can do with a published run: loads it with plain transformers and PEFT, and compares with the probe.

    python -m tests.flow.reload BASE OUTPUT PRECISION       PRECISION as in the spec: 4bit, 16bit or full

Prints JSON: the largest difference to the stored logits where the model computes in fp32, as it was asked to; the same
as it comes, for bitsandbytes turns to bf16 on its own on a CPU with AVX512-BF16 (`bf16`); the largest stored logit;
whether the same token is the likeliest at each place; and whether any module of unsloth was imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def load(base: str, output: Path, precision: str) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if precision == "full":
        return AutoModelForCausalLM.from_pretrained(output / "merged", dtype=torch.float32)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=nf4 if precision == "4bit" else None
    )
    return PeftModel.from_pretrained(model, output / "adapter")


def main(base: str, output: str, precision: str) -> None:
    import torch
    from safetensors.torch import load_file

    probe = load_file(Path(output) / "report" / "probe.safetensors")
    model = load(base, Path(output), precision).eval()
    packed = {
        module: module.support_avx512bf16_for_cpu
        for module in model.modules()
        if hasattr(module, "support_avx512bf16_for_cpu")
    }
    with torch.no_grad():
        for module in packed:
            module.support_avx512bf16_for_cpu = False
        logits = model(input_ids=probe["input_ids"]).logits[0].float()
        for module, support in packed.items():
            module.support_avx512bf16_for_cpu = support
        as_it_comes = model(input_ids=probe["input_ids"]).logits[0].float()
    found = {
        "difference": float((logits - probe["logits"]).abs().max()),
        "as_it_comes": float((as_it_comes - probe["logits"]).abs().max()),
        "bf16": any(packed.values()),
        "largest": float(probe["logits"].abs().max()),
        "same_choice": bool((logits.argmax(-1) == probe["logits"].argmax(-1)).all()),
        "unsloth": any(name.partition(".")[0] in ("unsloth", "unsloth_zoo") for name in sys.modules),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
