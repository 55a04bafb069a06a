"""The one record of a run: each row once, complete, and on disk before anybody hears of it."""

from __future__ import annotations

import json

from sdr1.training.observers.journal import NAME, Journal


class Source:
    """Figures of iteration 1's weights, at hand after iteration 2 (counted from 0)."""

    def figures(self, iteration, executor):
        return {"eval/iteration": 2.0, "eval/score": 0.5} if iteration == 2 else {}


class Listener:
    def __init__(self, journal):
        self._journal, self.heard = journal, []

    def accumulated(self, task):
        self.heard.append(task)

    def iteration(self, iteration, metrics, tasks, executor):
        on_disk = [json.loads(line) for line in self._journal.path.read_text().splitlines()]
        self.heard.append((iteration, metrics, on_disk == self._journal.rows, len(on_disk)))


def journal_of(small, tmp_path, source=None):
    (tmp_path / "run").mkdir(exist_ok=True)
    return Journal(small(4), source)


def test_whoever_hears_of_an_iteration_finds_its_row_on_disk(small, tmp_path):
    with journal_of(small, tmp_path) as journal:
        first, second = Listener(journal), Listener(journal)
        journal.subscribe(first)
        journal.subscribe(second)
        journal.accumulated("task")
        journal.iteration(0, {"loss": 1.0}, [], None)
        # Made again after a lost learner: told again, written once.
        journal.iteration(0, {"loss": 2.0}, [], None)
    assert first.heard == second.heard == ["task", (0, {"loss": 1.0}, True, 1), (0, {"loss": 2.0}, True, 1)]
    (row,) = (json.loads(line) for line in (tmp_path / "run" / NAME).read_text().splitlines())
    assert row["loss"] == 1.0


def test_what_comes_in_beside_an_iteration_is_in_its_row_or_in_the_next_new_one(small, tmp_path):
    with journal_of(small, tmp_path, Source()) as journal:
        for iteration in range(2):
            journal.iteration(iteration, {"loss": 0.0}, [], None)
        journal.rows.append({"iteration": 2, "time": 0.0})
        journal.iteration(2, {"loss": 0.0}, [], None)
        assert journal.evaluations() == {}, "row 2 was there already"
        journal.iteration(3, {"loss": 0.0}, [], None)
        assert [row.get("eval/score") for row in journal.rows] == [None, None, None, 0.5]
        assert journal.evaluations() == {2: journal.rows[3]}


def test_rows_of_an_earlier_process_are_of_the_record_and_a_torn_one_is_not(small, tmp_path):
    with journal_of(small, tmp_path) as journal:
        journal.iteration(0, {"loss": 0.0, "eval/iteration": 1.0}, [], None)
    with open(journal.path, "a") as file:
        file.write('{"iteration": 1, "ti')
    with journal_of(small, tmp_path) as again:
        again.iteration(1, {"loss": 0.5}, [], None)
        assert [row["loss"] for row in again.rows] == [0.0, 0.5]
        assert list(again.evaluations()) == [1]
    assert [json.loads(line)["loss"] for line in journal.path.read_text().splitlines()] == [0.0, 0.5]
