"""How often another model finds the tuned model's answer the better one."""

from __future__ import annotations

from job.evaluation.metrics.record import Metric

EVEN = 0.5  # of a pair in which neither is better, and of the base, which is compared with itself

JUDGE_WIN_RATE = Metric(
    "judge_win_rate", "Judge's win rate, 0 to 1",
    "share of pairs in which the judge finds the tuned model's answer better than the base's; even ones count half",
    lower_is_better=False, lowest=0.0, highest=1.0, by_others=True,
)  # fmt: skip
