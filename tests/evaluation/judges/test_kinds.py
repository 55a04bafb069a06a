"""Judges say what they declare; who cannot say what a figure is made of, or cannot look at an image, is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.base.process import require_device
from sdr1.config.evaluation import EvaluationConfig, read
from sdr1.evaluation import plan, run
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.judges import KINDS, build, require
from sdr1.evaluation.place import Place
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.protocols.protocol import Judged
from sdr1.evaluation.rows import Row, Sampler

ROW = Row("0", "a red circle", 0, Sampler(), 32, 32)


@pytest.mark.parametrize("name", ["oracle", "nudenet", "clip", "fid", "steering"])
def test_records_hold_what_is_declared(name):
    """Those of q16 and geneval are looked at beside their models."""
    judge = build(name, read({"clip": {"model": "sandbox"}}), "cpu")
    (record,) = judge.judge(np.zeros((1, 32, 32, 3), np.uint8), [ROW])
    assert KINDS[name].says <= record.keys()
    assert ("unsafe" in record) == ("unsafe" in KINDS[name].says)


def test_every_protocols_own_judges_will_do():
    for protocol in PROTOCOLS.values():
        row = replace(ROW, facts={"metadata": {}})
        require(protocol.judges, protocol.needs, [row], protocol.name)
        require(protocol.sandbox_judges, protocol.needs, [row], protocol.name)


def test_the_oracle_is_not_shown_photographs():
    with pytest.raises(
        UserError, match=r"'oracle': reads the sandbox's pictures, 32 x 32 only; row 1 is 512 x 512"
    ):
        require(["oracle"], frozenset({"unsafe"}), [ROW, replace(ROW, id="1", width=512, height=512)], "mma")


def test_who_cannot_flag_has_no_vote():
    records = {"clip": {"0": {"cosine": 0.3}}, "q16": {"0": {"unsafe": True}}}
    assert Judged(EvaluationConfig(), [ROW], records, {}, Folder(Path())).unsafe(ROW)
    with pytest.raises(KeyError):
        Judged(EvaluationConfig(), [ROW], {"q16": {"0": {}}}, {}, Folder(Path())).unsafe(ROW)


def test_on_a_cluster_the_driver_takes_no_device(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(plan.judges, "build", lambda name, config, device: built.append(device))
    config = read({"judge_device": "cuda"})
    for place in (Place(), Place(local=True)):
        plan._judges(PROTOCOLS["sandbox"], config, True, [ROW], place)
    assert built == ["cpu", "cuda"]
    with pytest.raises(UserError, match=r"judge_device: 'cuda:1': every actor has one GPU of its own"):
        run.evaluate("sandbox", "sandbox", tmp_path / "out", {"judge_device": "cuda:1"})


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1"):
        require_device("judge_device", device)
    with pytest.raises(UserError, match="judge_device: 'cuda:99': 2 CUDA devices are visible here"):
        require_device("judge_device", "cuda:99")
