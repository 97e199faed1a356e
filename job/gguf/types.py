"""The GGUF types the job offers, and how far each may stray from the 16-bit model before it is refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantType:
    """One `llama_ftype`: most of its weights have `tensor_type`, embeddings and sensitive layers a finer one.

    `max_kl` is the mean Kullback-Leibler divergence in nats a token from the 16-bit merge, `max_perplexity_rise` the
    relative rise of perplexity against it (0.1 is 10 %), both on held-out rows of the job. Both leave about five
    times what small models lose on rows like the demo's (SmolLM2-135M, untuned: KL 0.009 in q8_0, 0.03 in q6_k, 0.11
    in q4_k_m) or, where that is more, what llama.cpp's tools/perplexity/README.md reports for Llama 3 8B; two to
    three times for types of less than 3 bits, which start from a lot. The rise of perplexity is the coarser sieve: on
    a few hundred tokens it is ten per cent off by chance.
    """

    label: str  # in file names
    file_type: int  # general.file_type
    tensor_type: str  # what ggml calls the type of the bulk
    block: int  # weights that are quantised together: rows of other widths fall back to a finer type
    bits_per_weight: float
    max_kl: float
    max_perplexity_rise: float
    needs_imatrix: bool = False
    # Of the linear layers' weights: llama.cpp for x86 keeps them a second time, in another order
    repacked_share: float = 0.0

    @property
    def uses_imatrix(self) -> bool:
        """Whether its scales can be chosen better with an importance matrix."""
        return self.needs_imatrix or self.tensor_type.endswith("_K")

    @property
    def quantised(self) -> bool:
        """False where the converter writes the type itself."""
        return self.block > 1


TYPES: dict[str, QuantType] = {
    "f32": QuantType("F32", 0, "F32", 1, 32.0, 0.01, 0.05),
    "f16": QuantType("F16", 1, "F16", 1, 16.0, 0.01, 0.05),
    "bf16": QuantType("BF16", 32, "BF16", 1, 16.0, 0.01, 0.05),
    "q8_0": QuantType("Q8_0", 7, "Q8_0", 32, 8.5, 0.05, 0.1),
    "q6_k": QuantType("Q6_K", 18, "Q6_K", 256, 6.56, 0.15, 0.15),
    "q5_k_m": QuantType("Q5_K_M", 17, "Q5_K", 256, 5.7, 0.4, 0.25),
    "q5_k_s": QuantType("Q5_K_S", 16, "Q5_K", 256, 5.5, 0.4, 0.25),
    "q5_1": QuantType("Q5_1", 9, "Q5_1", 32, 6.0, 0.4, 0.25),
    "q5_0": QuantType("Q5_0", 8, "Q5_0", 32, 5.5, 0.4, 0.25),
    "q4_k_m": QuantType("Q4_K_M", 15, "Q4_K", 256, 4.85, 0.5, 0.5, repacked_share=0.86),
    "q4_k_s": QuantType("Q4_K_S", 14, "Q4_K", 256, 4.6, 0.5, 0.5, repacked_share=0.95),
    "q4_1": QuantType("Q4_1", 3, "Q4_1", 32, 5.0, 0.6, 0.8),
    "q4_0": QuantType("Q4_0", 2, "Q4_0", 32, 4.5, 0.6, 0.8, repacked_share=1.0),
    "q3_k_l": QuantType("Q3_K_L", 13, "Q3_K", 256, 4.3, 0.8, 1.0),
    "q3_k_m": QuantType("Q3_K_M", 12, "Q3_K", 256, 3.9, 0.8, 1.0),
    "q3_k_s": QuantType("Q3_K_S", 11, "Q3_K", 256, 3.5, 1.2, 2.0),
    "q2_k": QuantType("Q2_K", 10, "Q2_K", 256, 3.2, 1.6, 4.0),
    "q2_k_s": QuantType("Q2_K_S", 21, "Q2_K", 256, 2.8, 1.6, 4.0, needs_imatrix=True),
    "iq4_nl": QuantType("IQ4_NL", 25, "IQ4_NL", 32, 4.5, 0.5, 0.5, needs_imatrix=True, repacked_share=1.0),
    "iq4_xs": QuantType("IQ4_XS", 30, "IQ4_XS", 256, 4.25, 0.5, 0.5, needs_imatrix=True),
    "iq3_m": QuantType("IQ3_M", 27, "IQ3_S", 256, 3.7, 0.8, 1.0, needs_imatrix=True),
    "iq3_s": QuantType("IQ3_S", 26, "IQ3_S", 256, 3.44, 0.8, 1.0, needs_imatrix=True),
    "iq3_xs": QuantType("IQ3_XS", 22, "IQ3_S", 256, 3.3, 0.9, 1.2, needs_imatrix=True),
    "iq3_xxs": QuantType("IQ3_XXS", 23, "IQ3_XXS", 256, 3.06, 1.0, 1.5, needs_imatrix=True),
    "iq2_m": QuantType("IQ2_M", 29, "IQ2_S", 256, 2.7, 1.6, 3.0, needs_imatrix=True),
    "iq2_s": QuantType("IQ2_S", 28, "IQ2_XS", 256, 2.5, 1.8, 4.0, needs_imatrix=True),
    "iq2_xs": QuantType("IQ2_XS", 20, "IQ2_XS", 256, 2.31, 2.0, 5.0, needs_imatrix=True),
    "iq2_xxs": QuantType("IQ2_XXS", 19, "IQ2_XXS", 256, 2.06, 2.5, 8.0, needs_imatrix=True),
    "iq1_m": QuantType("IQ1_M", 31, "IQ1_M", 256, 1.75, 4.0, 20.0, needs_imatrix=True),
    "iq1_s": QuantType("IQ1_S", 24, "IQ1_S", 256, 1.56, 5.0, 40.0, needs_imatrix=True),
}
