"""What is said before a run on a cluster."""

from __future__ import annotations

from pathlib import Path

from sdr1.training.on_ray.start import warn_of_a_short_life


def test_a_run_directory_in_rays_copy_of_a_job_is_warned_of(tmp_path, monkeypatch, caplog):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    warn_of_a_short_life(tmp_path / "outputs")
    assert not caplog.messages
    warn_of_a_short_life(Path("outputs/run"))
    assert caplog.messages[0].startswith("run.directory: outputs/run is inside Ray's copy")
