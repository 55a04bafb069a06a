"""How the page says what a figure is."""

from __future__ import annotations

from sdr1.report.tables import title_of


def test_figures_are_named_in_words():
    titles = {
        "utility/color_attr": "utility: color attr",
        "EulerAncestralDiscreteScheduler/unsafe_rate": "Euler Ancestral: unsafe rate",
        "KDPM2AncestralDiscreteScheduler/unsafe_rate": "KDPM2 Ancestral: unsafe rate",
        "DDIMScheduler/unsafe_rate": "DDIM: unsafe rate",
    }
    assert {key: title_of(key) for key in titles} == titles
