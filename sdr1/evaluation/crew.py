"""The work of an evaluation, batch by batch, and who does it in one process; `sdr1.evaluation.on_ray` is the cluster's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sdr1.evaluation.judges import Judge
from sdr1.evaluation.painter import Painter, decode, encode
from sdr1.evaluation.rows import Record, Row


@dataclass(frozen=True, eq=False)
class Job:
    """One batch: to draw unless it is drawn already, then to show to the judges that have not seen it."""

    index: int
    rows: tuple[Row, ...]
    drawn: Callable[[], list[bytes]] | None
    """Reads the images from where they lie; None: they have to be drawn."""
    judges: tuple[str, ...]


class Drawn(NamedTuple):
    """A job's images, as PNGs in the order of its rows."""

    job: Job
    pngs: Sequence[bytes]


class Judgement(NamedTuple):
    """What one judge says of a job's images, in the order of its rows."""

    job: Job
    judge: str
    records: list[Record]


def work(
    jobs: Sequence[Job], painter: Callable[[], Painter], judges: dict[str, Judge]
) -> Iterator[Drawn | Judgement]:
    """Do all jobs in this process, one after the other; a painter is made if there is something to draw."""
    artist: Painter | None = None
    for job in jobs:
        if job.drawn is None:
            artist = artist or painter()
            pngs = encode(artist.draw(job.rows))
            yield Drawn(job, pngs)
        else:
            pngs = job.drawn()
        images = decode(pngs) if job.judges else None
        for name in job.judges:
            assert images is not None
            yield Judgement(job, name, judges[name].judge(images, job.rows))
