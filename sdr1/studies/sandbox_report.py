"""`sdr1 sandbox report`: the sandbox's base and the demo's model through every protocol, on one page."""

from __future__ import annotations

import os
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sdr1.base.plain_data import peek
from sdr1.base.process import end_with_parent
from sdr1.base.section import SANDBOX
from sdr1.evaluation.place import Place
from sdr1.evaluation.suite import EVERY_PROTOCOL, suite
from sdr1.report.page import claim, write
from sdr1.studies import demo

_WEIGHTS = "weights_sha256"


def run(
    out: Path, *, demo_folder: Path, evaluations: Path, settings: dict[str, Any], also: list[Path]
) -> Path:
    """Train the demo's model where it is missing, evaluate both on two processes, write the page; returns its path.

    What is there already is not made again. A model of other weights gets a folder of its own in `evaluations`.

    Raises:
        UserError: a setting or a folder in `also` is wrong, or `out` holds something else.
    """
    # The page comes last, after hours.
    claim(out)
    summary = demo_folder / "run" / "summary.json"
    if not peek(summary, _WEIGHTS, str):
        print(f"1/4 training the demo's model in {demo_folder}", flush=True)
        demo.run(demo_folder, seeds=[0], images=60, overrides=[])
    weights = peek(summary, _WEIGHTS, str)
    model, base, trained = (
        demo_folder / "run" / "model",
        evaluations / "base",
        evaluations / f"trained-{weights[:8]}",
    )
    print(
        f"2/4 every protocol on the base ({base}) and on the trained model ({trained}), side by side",
        flush=True,
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as other:
        beside: Future[None] = other.submit(_evaluate, SANDBOX, base, settings, quiet=True)
        _evaluate(str(model), trained, settings)
        beside.result()
    print("3/4 paired tests of the two", flush=True)
    _evaluate(str(model), trained, settings, against=base, quiet=True)
    print("4/4 the page", flush=True)
    return write([f"base={base}", f"trained={trained}", str(demo_folder / "run"), *map(str, also)], out)


def _evaluate(
    model: str, out: Path, settings: dict[str, Any], *, against: Path | None = None, quiet: bool = False
) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if quiet else nullcontext():
        suite(EVERY_PROTOCOL, model, out, settings, Place(local=True, against=against))
