"""The figures of a run as OpenMetrics text."""

from __future__ import annotations

import math

from job.host.pulse import HELP, State, open_metrics

HEARD = [
    ("begin", {"stage": "baseline"}),
    ("baseline", {"done": 1, "total": 9}),
    ("baseline", {"held_out_loss": 2.5, "note": "no figure"}),
    ("begin", {"stage": "train"}),
    ("train", {"done": 3, "total": 20, "step": 3, "loss": math.nan, "grad_norm": math.inf, "learning_rate": 1e-5, "eta_seconds": 4}),
    ("delivered", {"artefact": "gguf-q8_0", "held_out_loss": 0.5}),
]


def test_names_are_escaped_and_numbers_spelled_as_the_format_has_them() -> None:
    state = State("b17326048ef2dc7e", 'a "b" \\ c\nd')
    for event, fields in HEARD:
        state.hear(event, fields)
    text = open_metrics(state)
    assert 'tunejob_run_info{run_id="b17326048ef2dc7e",name="a \\"b\\" \\\\ c\\nd"} 1.0\n' in text
    assert "tunejob_train_loss NaN\n" in text
    assert "tunejob_train_grad_norm +Inf\n" in text
    assert "tunejob_train_learning_rate 1e-05\n" in text
    assert "# UNIT tunejob_train_eta_seconds seconds\n" in text
    assert 'tunejob_stage_total{stage="train"} 20.0\n' in text
    evaluation = [line for line in text.splitlines() if line.startswith("tunejob_evaluation")]
    assert evaluation == [
        'tunejob_evaluation{model="base",metric="held_out_loss"} 2.5',
        'tunejob_evaluation{model="gguf-q8_0",metric="held_out_loss"} 0.5',
    ]
    assert "tunejob_finished 0.0\n# EOF\n" in text
    assert "exit_code" not in text
    state.exit_code = 14
    assert "tunejob_exit_code 14.0\n# EOF\n" in open_metrics(state)


def test_each_family_is_there_once_and_described() -> None:
    state = State("b17326048ef2dc7e", "name", exit_code=0)
    for event, fields in HEARD:
        state.hear(event, fields)
    families = [line.split()[2] for line in open_metrics(state).splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    assert set(families) == set(HELP) - {"tunejob_train_tokens_per_second"}
