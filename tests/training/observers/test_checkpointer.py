"""Which checkpoints a run keeps, and which metric may choose one."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np

from sdr1.base.records import LearnerState, Weights
from sdr1.config.training import validate
from sdr1.training import checkpoint
from sdr1.training.observers.checkpointer import Checkpointer
from sdr1.training.observers.journal import Journal
from sdr1.training.run import train


def state(iteration: int) -> LearnerState:
    return LearnerState(0, (Weights(iteration, np.zeros(4, np.uint8), 0),), None, {})


def test_only_the_newest_and_the_best_are_kept(small, tmp_path):
    values = small(4).model_dump(mode="json") | {"checkpoint": {"keep": 1, "best": "reward_safe"}}
    train(validate(values), local=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = 1 + max(range(4), key=lambda n: rows[n]["reward_safe"])
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("0*")}
    assert kept == {4, best}


def test_one_damaged_checkpoint_does_not_stop_pruning(small, tmp_path):
    config = small(4, checkpoint={"keep": 1, "best": "reward_safe"})
    saved = tmp_path / "run" / "checkpoints"
    train(small(1), local=True)
    (saved / "000001" / checkpoint.FACTS).write_text('{"epoch": 3}')
    shutil.copytree(saved / "000001", saved / "000000")
    with Checkpointer(config, Journal(config)) as keeper:
        for iteration, reward in ((2, 0.5), (3, float("nan")), (4, 0.1), (5, 0.2)):
            executor = SimpleNamespace(snapshot=lambda done: lambda: state(done))
            keeper.iteration(iteration - 1, {"reward_safe": reward}, [], executor)
            assert keeper.flush(10)
    kept = {path.name for path in saved.glob("0*")}
    assert kept == {"000000", "000001", "000002", "000005"}, "the damaged are left alone, the others pruned"


def test_the_best_by_evaluation_is_kept_though_its_figures_come_later(small, tmp_path):
    """Of the weights of iteration 1 the figures come in at iteration 3, and are in nobody's hands but the journal's."""
    config = small(
        4, checkpoint={"keep": 1, "best": "eval/utility/overall"}, evaluation={"every": 1, "images": 1}
    )
    utility = {2: (1, 0.9), 3: (2, 0.3), 4: (3, 0.2)}

    class Late:
        def figures(self, iteration, executor):
            at, value = utility.get(iteration + 1, (0, 0.0))
            return {"eval/iteration": float(at), "eval/utility/overall": value} if at else {}

    (tmp_path / "run").mkdir()
    with Journal(config, Late()) as journal, Checkpointer(config, journal) as keeper:
        journal.subscribe(keeper)
        for iteration in range(4):
            executor = SimpleNamespace(snapshot=lambda done: lambda: state(done))
            journal.iteration(iteration, {}, [], executor)
            assert keeper.flush(10)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("0*")} == {"000001", "000004"}


def test_an_evaluation_lends_its_row_to_no_other_metric(small, tmp_path):
    """The figures of iteration 1's weights come in at iteration 2, in a row with rewards that are not iteration 1's."""
    config = small(3, checkpoint={"keep": 1, "best": "reward_safe"}, evaluation={"every": 1, "images": 1})
    (tmp_path / "run").mkdir()
    source = SimpleNamespace(
        figures=lambda iteration, executor: {"eval/iteration": 1.0} if iteration == 1 else {}
    )
    with Journal(config, source) as journal, Checkpointer(config, journal) as keeper:
        journal.subscribe(keeper)
        for iteration, reward in enumerate((0.1, 0.9, 0.2)):
            executor = SimpleNamespace(snapshot=lambda done: lambda: state(done))
            journal.iteration(iteration, {"reward_safe": reward}, [], executor)
            assert keeper.flush(10)
        assert keeper.best().version == 2
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("0*")} == {"000002", "000003"}


def test_the_next_best_takes_the_place_of_a_damaged_best(small, tmp_path, caplog):
    config = small(3, checkpoint={"keep": 3, "best": "-kl"})
    for iteration, kl in ((1, 0.2), (2, 0.1), (3, 0.3)):
        checkpoint.save(config.run.directory, state(iteration), config, {"kl": kl})
    keeper = Checkpointer(config, Journal(config))
    assert keeper.best().version == 2
    tensors = tmp_path / "run" / "checkpoints" / "000002" / checkpoint.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert keeper.best().version == 1
    assert "000002" in caplog.text
    assert Checkpointer(small(3), Journal(config)).best() is None, "nobody asked for one"
