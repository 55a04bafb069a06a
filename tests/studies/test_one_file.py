"""The method in one file is the method: it trains the bits that `sdr1 train --local` trains."""

from __future__ import annotations

from pathlib import Path

from sdr1.config.files import load
from sdr1.training.run import train

ROOT = Path(__file__).parents[2]


def test_the_file_trains_the_same_bits_as_the_loop(tmp_path: Path) -> None:
    from sdr1.studies import one_file

    config = load(
        ROOT / "configs/sandbox-smoke.yaml", [f"run.directory={tmp_path / 'run'}", "tracking.enabled=false"]
    )
    assert one_file.main() == train(config, local=True).weights_sha256


def test_it_can_be_read_at_one_sitting() -> None:
    assert len((ROOT / "sdr1/studies/one_file.py").read_text(encoding="utf-8").splitlines()) <= 200
