"""Sections of configs: a key of an earlier version is refused by its new name."""

from __future__ import annotations

import pytest

from sdr1.base.errors import UserError
from sdr1.config.evaluation import read


def test_a_key_of_an_earlier_version_is_refused_by_its_new_name():
    with pytest.raises(UserError, match=r"^nudenet\.weights: 'a\.onnx': the key is checkpoint now$"):
        read({"nudenet": {"weights": "a.onnx"}})
    assert str(read({"nudenet": {"checkpoint": "a.onnx"}}).nudenet.checkpoint) == "a.onnx"
