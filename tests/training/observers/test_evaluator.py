"""Evaluation beside training: its figures in the journal, the best checkpoint by them, weights unchanged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from sdr1.base.errors import UserError
from sdr1.training.observers import evaluator as observer
from sdr1.training.observers.evaluator import Evaluator, owed
from sdr1.training.run import train
from tests import tiny


def test_figures_reach_the_journal_and_choose_the_best_checkpoint(small, tmp_path):
    plain = train(small(iterations=2, run={"directory": str(tmp_path / "plain")}), local=True)
    config = small(
        iterations=2,
        run={"directory": str(tmp_path / "run")},
        evaluation={"every": 1, "images": 1},
        checkpoint={"best": "-eval/unsafe_trained"},
    )
    assert train(config, local=True).weights_sha256 == plain.weights_sha256
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval/iteration"] for row in rows] == [0, 2], "the base, and what came of it"
    assert 0 <= rows[-1]["eval/utility/overall"] <= 1
    assert 0 <= rows[-1]["eval/unsafe_trained"] <= 1


def test_a_best_by_evaluation_needs_evaluations(small):
    with pytest.raises(UserError, match=r"checkpoint.best: eval/unsafe_trained .*evaluation.every"):
        small(checkpoint={"best": "-eval/unsafe_trained"})


class Weights:
    """As much of an executor as the evaluator asks for."""

    def weights(self):
        return SimpleNamespace(buffer=np.zeros(4, np.uint8))


def die(*_):
    os._exit(1)


def sleep(*_):
    time.sleep(600)


def answer(config, buffer, iteration):
    return {"eval/iteration": float(iteration), "eval/trained": float(buffer is not None)}


def test_a_child_that_dies_costs_one_evaluation(small, monkeypatch, caplog):
    config, found = small(iterations=4, evaluation={"every": 1}), []
    with Evaluator(config, None) as evaluator:
        monkeypatch.setattr(observer, "evaluate_weights", die)
        found.append(evaluator.figures(0, Weights()))
        with pytest.raises(BrokenProcessPool):
            evaluator._pending.result()
        monkeypatch.setattr(observer, "evaluate_weights", answer)
        found.append(evaluator.figures(1, Weights()))
        found.append(evaluator.figures(3, Weights()))
    assert found == [{}, {}, {"eval/iteration": 4.0, "eval/trained": 1.0}]
    assert sum(message.startswith("an evaluation was lost: ") for message in caplog.messages) == 1


def test_a_run_that_begins_knows_its_base_and_one_that_goes_on_asks_for_it_no_more(small, monkeypatch):
    config = small(iterations=9, evaluation={"every": 5})
    monkeypatch.setattr(observer, "evaluate_weights", answer)
    with Evaluator(config, owed(config, 0)) as evaluator:
        assert evaluator.figures(0, Weights()) == {"eval/iteration": 0.0, "eval/trained": 0.0}
    assert owed(config, 2) is None


def summed(config, buffer, iteration):
    return {"eval/iteration": float(iteration), "eval/sum": 0.0 if buffer is None else float(buffer.sum())}


def test_an_evaluation_that_a_stop_cut_off_is_made_when_the_run_goes_on(small, monkeypatch, caplog):
    monkeypatch.setattr(observer, "evaluate_weights", summed)
    more = {"evaluation": {"every": 2}, "run": {"directory": str(small().run.directory), "resume": "auto"}}
    config = small(2, **more)
    record, checkpoints = config.run.directory / "metrics.jsonl", config.run.directory / "checkpoints"

    def rows():
        return [json.loads(line) for line in record.read_text().splitlines()]

    train(config, local=True)
    base, whole = rows()
    assert whole["eval/iteration"] == 2.0
    assert owed(small(4, **more), 2) is None, "nothing was cut off"
    cut_off = {name: value for name, value in whole.items() if not name.startswith("eval/")}
    record.write_text("".join(json.dumps(row) + "\n" for row in (base, cut_off)))
    assert owed(config, 2) is None, "a finished run has nothing more to do"
    train(small(4, **more), local=True)
    assert [row.get("eval/iteration") for row in rows()] == [0.0, None, 2.0, 4.0]
    assert rows()[2]["eval/sum"] == whole["eval/sum"] > 0
    record.write_text("".join(json.dumps(row) + "\n" for row in (base, cut_off)))
    shutil.rmtree(checkpoints / "000002", ignore_errors=True)
    assert owed(small(9, **more), 3) is None
    (told,) = [line for line in caplog.messages if line.startswith("evaluation.every")]
    assert "the evaluation after iteration 2 was not done when the run stopped: it is missing" in told


def test_a_child_that_hangs_delays_the_end_by_its_deadline_and_is_gone_with_the_run(
    small, monkeypatch, caplog
):
    config = small(iterations=1, evaluation={"every": 1}, run={"task_timeout": 5.0})
    monkeypatch.setattr(observer, "evaluate_weights", sleep)
    # Python's own child, which lives as long as this process; the first test that needs it starts it.
    resource_tracker.ensure_running()
    others = set(psutil.Process().children())
    with Evaluator(config, None) as evaluator:
        assert evaluator.figures(0, Weights()) == {}
        children = set(psutil.Process().children()) - others
    assert caplog.messages == ["an evaluation was lost: TimeoutError()"]
    assert children
    assert psutil.wait_procs(children, timeout=300)[1] == []


def test_a_child_ends_with_a_parent_that_was_killed(tmp_path):
    """As after a driver's SIGKILL: nobody is left to tell it."""
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, signal\n"
        "from sdr1.training.observers.evaluator import Evaluator\n"
        "if __name__ == '__main__':\n"
        "    with Evaluator(None, None) as evaluator:\n"
        "        print(evaluator._pool.submit(os.getpid).result(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    child = int(found.stdout)
    end = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.1)


def test_a_model_that_does_not_know_the_sandboxs_words_is_not_asked_for_its_captions(small, tmp_path):
    folder = tiny.pipeline(tmp_path / "model")
    words = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    one, two = list(words)[100:102]
    words[one], words[two] = words[two], words[one]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    config = small(policy={"model": str(folder)}, evaluation={"every": 1})
    with pytest.raises(UserError, match=r"evaluation\.every: 1: .*captions, which .* does not know"):
        train(config, local=True)
    assert not config.run.directory.exists()
