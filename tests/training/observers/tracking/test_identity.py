"""By what a run is known in MLflow."""

from __future__ import annotations

import subprocess

from sdr1.base.records import Prompt
from sdr1.training.observers.tracking import identity


def test_the_digest_is_of_the_prompts_and_their_labels_alone(small):
    prompts = [Prompt("a red circle", "safe"), Prompt("a skull", "unsafe")]
    found = identity.dataset(small(), prompts)
    assert found.df.to_dict("records") == [
        {"prompt": "a red circle", "label": "safe"}, {"prompt": "a skull", "label": "unsafe"},
    ]  # fmt: skip
    assert found.digest == identity.dataset(small(9, learner={"learning_rate": 1e-5}), prompts).digest
    for other in (prompts[:1], prompts[::-1], [prompts[0], Prompt("a skull", "safe")]):
        assert identity.dataset(small(), other).digest != found.digest
    assert found.source.to_dict()["tags"]["mlflow.source.name"] == "sandbox"


def test_the_commit_is_the_checkouts_and_of_an_installed_package_there_is_none(small, tmp_path, monkeypatch):
    assert identity.tags(small()).get("mlflow.source.git.commit", "") == identity._commit()
    repository = tmp_path / "theirs"
    (repository / "site").mkdir(parents=True)
    (repository / "site" / "identity.py").write_text("")
    monkeypatch.setattr(identity, "__file__", str(repository / "site" / "identity.py"))
    assert identity._commit() == ""

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        asked = ["git", *who, *words]
        return subprocess.run(
            asked, cwd=repository, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody's")
    assert identity._commit() == "", "it lies in somebody's repository, and is not of it"
    git("add", "site/identity.py")
    git("commit", "-q", "-m", "a checkout")
    assert identity._commit() == git("rev-parse", "HEAD")
