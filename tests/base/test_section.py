"""Sections of configs: a key of an earlier version is refused by its new name."""

from __future__ import annotations

import pytest

from sdr1.base.errors import UserError
from sdr1.config.evaluation import read
from sdr1.config.training import validate


def test_a_key_of_an_earlier_version_is_refused_by_its_new_name():
    with pytest.raises(UserError, match=r"^nudenet\.weights: 'a\.onnx': the key is pretrained now$"):
        read({"nudenet": {"weights": "a.onnx"}})
    with pytest.raises(UserError, match=r"^reward\.checkpoint: 'w\.pt': the key is pretrained now$"):
        validate({"reward": {"checkpoint": "w.pt"}})
    assert str(read({"nudenet": {"pretrained": "a.onnx"}}).nudenet.pretrained) == "a.onnx"


def test_a_run_of_an_earlier_version_that_set_nothing_there_can_be_read():
    assert validate({"reward": {"checkpoint": None}}) == validate({})
