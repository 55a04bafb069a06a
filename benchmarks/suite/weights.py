"""Publishing, fetching and loading weights in four workers of a node, over one memcpy of the same bytes."""

from __future__ import annotations

import statistics
import sys

import numpy as np
import ray
import torch

from benchmarks.common import report, seconds
from sdr1.base.process import peak_memory, prepare_process
from sdr1.base.records import Weights
from sdr1.models.flat import FlatParameters

RUNS, WORKERS, WARM_UP = 5, 4, 2
SIZES = {"173MB": 173 * 10**6, "1.7GB": 17 * 10**8}


class Holder:
    """Stands for the learner or a rollout worker: nothing but its flat parameters."""

    def __init__(self, size: int) -> None:
        prepare_process(1)
        # Memory that nobody has written takes no room: the flat buffer is the only one that does.
        parameter = torch.nn.Parameter(torch.empty(size // 2, dtype=torch.bfloat16))
        self._flat = FlatParameters([parameter])
        parameter.data.view(torch.int64).random_()
        self._before = peak_memory()

    def publish(self) -> tuple[Weights, int]:
        weights = self._flat.publish(0)
        return weights, weights.checksum

    def load(self, weights: Weights) -> int:
        return self._flat.load(weights.buffer)

    def extra(self) -> int:
        """Bytes held at most beyond the parameters; a mapped object of the store counts once it is read."""
        return peak_memory() - self._before


def main(names: list[str]) -> None:
    for name in names or list(SIZES):
        size = SIZES[name]
        ray.init(
            address="local",
            num_cpus=WORKERS + 1,
            include_dashboard=False,
            object_store_memory=max(2 * size, 10**9),
            log_to_driver=False,
        )
        place = ray.remote(num_cpus=1)(Holder)
        learner, workers = place.remote(size), [place.remote(size) for _ in range(WORKERS)]
        source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
        publishing: list[float] = []

        def sync(learner=learner, workers=workers, publishing=publishing) -> None:
            weights, checksum = learner.publish.options(num_returns=2).remote()
            publishing.append(seconds(lambda: ray.wait([weights], fetch_local=False)))
            assert set(ray.get([worker.load.remote(weights) for worker in workers])) == {ray.get(checksum)}

        ray.get([each.extra.remote() for each in (learner, *workers)])
        # The store's memory is new to the kernel and to every process until each of its places was written once.
        first = seconds(sync)
        for _ in range(WARM_UP):
            sync()
        publishing.clear()
        pairs = [(seconds(sync), seconds(lambda: np.copyto(target, source))) for _ in range(RUNS)]  # noqa: B023
        memcpy = statistics.median(copy for _, copy in pairs)
        report(
            f"weights_{name}",
            "publish + fetch + load in four workers over one memcpy",
            pairs,
            memcpy_seconds=memcpy,
            publish_over_memcpy=statistics.median(publishing) / memcpy,
            first_over_memcpy=first / memcpy,
            learner_extra_over_size=ray.get(learner.extra.remote()) / size,
            worker_extra_over_size=max(ray.get([worker.extra.remote() for worker in workers])) / size,
        )
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
