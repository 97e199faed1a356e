"""On CPUs, what TRL computes with a kernel that they lack."""

from __future__ import annotations

from typing import Any


def compute_on_cpus(arguments: Any) -> None:
    """Gives TRL log-probabilities in plain torch, where the trainer of these `arguments` runs on a CPU."""
    from trl.trainer import utils

    if arguments.use_cpu:
        utils._ChunkedLogProbFunction = LogProbabilities


class LogProbabilities:
    """In the form of TRL's own: `apply` takes hidden states [tokens, width], the output layer's weight and bias, and
    the tokens that come next, and gives of each token the log-probability, the entropy, nothing, the mean logit, and
    whether it is the likeliest.
    """

    @staticmethod
    def apply(
        hidden: Any, weight: Any, bias: Any, targets: Any, temperature: float, _chunk: int,
        softcap: float | None = None, scale: float = 1.0, outputs: tuple[str, ...] = (),
    ) -> tuple[Any, Any, Any, Any, Any]:  # fmt: skip
        import torch

        logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        all_of_them = (logits / temperature).log_softmax(-1)
        found = all_of_them.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -(all_of_them.exp() * all_of_them).sum(-1)
            mean, likeliest = logits.mean(-1) / temperature, all_of_them.argmax(-1) == targets
        return found, entropy, None, mean, likeliest
