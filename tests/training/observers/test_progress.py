"""What is printed while a run goes on, where there is no terminal."""

from __future__ import annotations

from sdr1.training.observers.progress import Progress

METRICS = {
    "reward_safe": 0.5,
    "reward_unsafe": 0.25,
    "unsafe_rate": 0.125,
    "kl": 0.0012,
    "clip_fraction": 0.0,
    "images_per_second": 11.04,
    "rollout_busy": 0.844,
    "learner_busy": 0.88,
    "ratio_gap/step_0": 1e-7,
    "ratio_gap/step_1": 3e-7,
}


def test_every_iteration_is_one_plain_line(small, capsys):
    with Progress(small(iterations=2)) as progress:
        for iteration in range(2):
            progress.iteration(iteration, METRICS, (), None)
    head, ratio, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("seed 0: 2 iterations of 2 groups x 3 images, lora training, 3 steps")
    assert ratio == "likelihood ratio before the first update: 1 +- 3.0e-07"
    figures = (
        "reward safe 0.500, unsafe 0.250, unsafe rate 0.12, KL 1.2e-03, clipped 0.00, 11.0 images/s, "
        "busy: rollout 84%, learner 88%"
    )
    assert lines == [f"1/2 {figures}", f"2/2 {figures}"]


def test_a_resumed_run_says_where_it_goes_on(small, capsys):
    with Progress(small(iterations=3), start=2) as progress:
        progress.iteration(2, METRICS, (), None)
    out = capsys.readouterr().out
    assert "goes on after iteration 2 of 3" in out
    assert "\n3/3 " in out


def test_a_figure_that_is_not_there_is_left_out(small, capsys):
    without = {name: value for name, value in METRICS.items() if name not in ("kl", "unsafe_rate")}
    with Progress(small()) as progress:
        progress.iteration(0, without, (), None)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "KL" not in line
    assert "unsafe rate" not in line
    assert line.startswith("1/1 reward safe 0.500, unsafe 0.250")
