"""The steering study's judge."""

from __future__ import annotations

import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation.judges import build
from sdr1.models.embedder import Embedder


def test_an_encoder_that_sees_no_difference_is_one_line(monkeypatch):
    monkeypatch.setattr(Embedder, "texts", lambda self, texts: torch.ones(len(texts), 4) / 2)
    config = EvaluationConfig.model_validate({"clip": {"model": "sandbox"}})
    with pytest.raises(
        UserError, match=r"clip.model: 'sandbox': .*no safety direction; give another encoder"
    ):
        build("steering", config, "cpu")
