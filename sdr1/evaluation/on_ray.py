"""An evaluation on a Ray cluster: drawing and judging actors that come and go; a batch that is lost is made again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import ray

from sdr1.base.process import prepare_process
from sdr1.config.evaluation import EvaluationConfig
from sdr1.config.workers import bounds
from sdr1.distributed.actor import Actor, Handle, Ref
from sdr1.distributed.calls import Calls, check_losses, is_lost_object
from sdr1.distributed.fleet import Fleet, Worker
from sdr1.distributed.placement import Placement, least_cpus
from sdr1.erasers import patched
from sdr1.evaluation import judges
from sdr1.evaluation.crew import Drawn, Job, Judgement
from sdr1.evaluation.painter import Painter, decode, encode
from sdr1.evaluation.rows import Record, Row

_AHEAD = 4
"""Batches drawn and not yet judged, for each judging actor, at which drawing waits."""


class PainterActor(Actor):
    """Consumes rows, produces PNGs."""

    def __init__(self, model: str, config: EvaluationConfig) -> None:
        prepare_process(config.threads)
        self._painter = Painter(patched.load_named(model, config.model), config.device)

    def draw(self, rows: Sequence[Row]) -> list[bytes]:
        return encode(self._painter.draw(rows))


class JudgeActor(Actor):
    """Consumes PNGs, produces every judge's records."""

    def __init__(self, names: Sequence[str], config: EvaluationConfig) -> None:
        prepare_process(config.threads)
        self._judges = {name: judges.build(name, config, config.judge_device) for name in names}

    def judge(self, names: Sequence[str], pngs: list[bytes], rows: Sequence[Row]) -> dict[str, list[Record]]:
        images = decode(pngs)
        return {name: self._judges[name].judge(images, rows) for name in names}


class PainterHandle(Handle):
    def draw(self, rows: Sequence[Row]) -> Ref[list[bytes]]:
        return self._actor.draw.remote(rows)


class JudgeHandle(Handle):
    def judge(
        self, names: Sequence[str], pngs: Ref[list[bytes]], rows: Sequence[Row]
    ) -> Ref[dict[str, list[Record]]]:
        return self._actor.judge.remote(names, pngs, rows)


class _Crew:
    """Draws and judges at once; PNGs go from actor to actor by reference, and to the driver to be written."""

    def __init__(
        self, jobs: Sequence[Job], model: str, names: Sequence[str], config: EvaluationConfig
    ) -> None:
        self._to_draw = deque(job for job in jobs if job.drawn is None)
        self._to_judge: deque[tuple[Job, Ref[list[bytes]] | None]] = deque(
            (job, None) for job in jobs if job.drawn is not None
        )
        self._left = len(jobs)
        self._losses: Counter[Job] = Counter()
        self._events: deque[Drawn | Judgement] = deque()
        self._calls = Calls(config.task_timeout, config.start_timeout)
        self._ahead = 1
        self._fleets: list[Fleet[Any]] = []
        if self._to_draw:
            place = Placement.on(config.device, config.threads, PainterHandle, PainterActor, model, config)
            self._painters = Fleet("painters", place, bounds(config.workers), self._calls, self._dispatch)
            self._fleets.append(self._painters)
        if any(job.judges for job in jobs):
            cpus = least_cpus()
            judge = Placement.on(config.judge_device, cpus, JudgeHandle, JudgeActor, names, config)
            size = bounds(config.judge_workers)
            self._ahead = _AHEAD * size.max
            self._judges = Fleet("judges", judge, size, self._calls, self._dispatch)
            self._fleets.append(self._judges)

    def events(self) -> Iterator[Drawn | Judgement]:
        try:
            while self._left or self._events:
                while self._events:
                    yield self._events.popleft()
                if self._left:
                    self._calls.wait()
                    for fleet in self._fleets:
                        fleet.tick()
                    self._dispatch()
        finally:
            for fleet in self._fleets:
                fleet.close()

    def _dispatch(self) -> None:
        while self._to_draw and self._painters.idle and len(self._to_judge) < self._ahead:
            job, worker = self._to_draw.popleft(), self._painters.idle.popleft()
            ref = worker.actor.draw(job.rows)
            self._calls.add(
                ref, partial(self._drawn, job, worker, ref), partial(self._draw_lost, job, worker)
            )
        while self._to_judge and self._judges.idle:
            (job, pngs), judge = self._to_judge.popleft(), self._judges.idle.popleft()
            if pngs is None:
                assert job.drawn is not None
                pngs = ray.put(job.drawn())
            judged = judge.actor.judge(job.judges, pngs, job.rows)
            self._calls.add(
                judged, partial(self._judged, job, judge), partial(self._judge_lost, job, judge, pngs)
            )

    def _drawn(
        self, job: Job, worker: Worker[PainterHandle], ref: Ref[list[bytes]], pngs: list[bytes]
    ) -> None:
        self._painters.release(worker)
        self._events.append(Drawn(job, pngs))
        if job.judges:
            self._to_judge.append((job, ref))
        else:
            self._left -= 1

    def _draw_lost(self, job: Job, worker: Worker[PainterHandle], error: Exception) -> None:
        if is_lost_object(error):
            self._painters.release(worker)
        else:
            self._painters.evict(worker, error)
        self._count(job, error)
        self._to_draw.appendleft(job)

    def _judged(self, job: Job, worker: Worker[JudgeHandle], records: dict[str, list[Record]]) -> None:
        self._judges.release(worker)
        self._events.extend(Judgement(job, name, records[name]) for name in job.judges)
        self._left -= 1

    def _judge_lost(
        self, job: Job, worker: Worker[JudgeHandle], pngs: Ref[list[bytes]], error: Exception
    ) -> None:
        self._count(job, error)
        if is_lost_object(error):
            # The images went with their node before they were judged: the same bytes are drawn again.
            self._judges.release(worker)
            if job.drawn is None:
                self._to_draw.appendleft(job)
            else:
                self._to_judge.appendleft((job, None))
            return
        self._judges.evict(worker, error)
        self._to_judge.appendleft((job, pngs))

    def _count(self, job: Job, error: Exception) -> None:
        self._losses[job] += 1
        check_losses(f"batch {job.index} (from row {job.rows[0].id})", self._losses[job], error)


def work(
    jobs: Sequence[Job], model: str, names: Sequence[str], config: EvaluationConfig
) -> Iterator[Drawn | Judgement]:
    """The events of all jobs, done on the cluster that this process has joined."""
    return _Crew(jobs, model, names, config).events()
