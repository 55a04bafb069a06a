"""`sdr1 evaluate`, `sdr1 judge` and the page of their results, `sdr1 report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdr1.base.errors import UserError
from sdr1.cli.options import Address, Local, one_place

if TYPE_CHECKING:
    from sdr1.evaluation.result import Result

EvaluationSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings, e.g. prompts=i2p.csv q16.prompts=prompts.p workers=4"
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Another model's evaluation of the same rows: adds paired tests."),
]


def evaluate(
    protocol: Annotated[
        str,
        typer.Argument(
            metavar="PROTOCOL",
            help="sandbox, i2p, geneval, clip-t, fid, schedulers, steering, mma, sneaky; or suite.",
        ),
    ],
    overrides: EvaluationSettings = None,
    model: Annotated[
        str, typer.Option(metavar="M", help="`sandbox`, a diffusers pipeline folder, or a hub id.")
    ] = "sandbox",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to write or go on with; default: outputs/evaluation/PROTOCOL."
        ),
    ] = None,
    suite: Annotated[
        Path | None,
        typer.Option(
            metavar="YAML", help="List of {protocol, settings} for `suite`; default: every protocol."
        ),
    ] = None,
    against: Against = None,
    local: Local = False,
    ray_address: Address = None,
) -> None:
    """Draw a protocol's images with a model, judge them, write figures with their intervals; resumes when killed.

    Example: `sdr1 evaluate sandbox --model outputs/demo/run/model --out outputs/trained images=50`
    """
    one_place(local, ray_address)
    if suite is not None and protocol != "suite":
        raise UserError(
            f"--suite: {str(suite)!r}: {protocol} is one protocol; use `sdr1 evaluate suite`, or drop it"
        )
    from sdr1.config.files import from_overrides
    from sdr1.evaluation import run as runner
    from sdr1.evaluation.place import Place
    from sdr1.training.observers.tracking.outcome import measured

    place, values = Place(local, ray_address, against), from_overrides(overrides or [])
    folder = out or Path("outputs/evaluation") / protocol
    if protocol == "suite":
        from sdr1.evaluation import suite as suites

        entries = suites.EVERY_PROTOCOL if suite is None else suites.read(suite)
        results = suites.suite(entries, model, folder, values, place)
    else:
        results = {protocol: runner.evaluate(protocol, model, folder, values, place)}
        _print_figures(results[protocol])
    for name, result in results.items():
        measured(model, name, result)
    print(f"written to {folder}")


def judge(
    protocol: Annotated[str, typer.Argument(metavar="PROTOCOL", help="As of `sdr1 evaluate`.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Images named after their rows.")],
    overrides: EvaluationSettings = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write or go on with; default: outputs/judged/PROTOCOL."),
    ] = None,
    against: Against = None,
    local: Local = False,
    ray_address: Address = None,
) -> None:
    """Judge images that were made elsewhere, by a protocol's judges.

    Example: `sdr1 judge i2p --images drawn --out outputs/judged prompts=i2p.csv judges=[nudenet]`
    """
    one_place(local, ray_address)
    from sdr1.config.files import from_overrides
    from sdr1.evaluation import run as runner
    from sdr1.evaluation.place import Place

    place, values = Place(local, ray_address, against), from_overrides(overrides or [])
    folder = out or Path("outputs/judged") / protocol
    _print_figures(runner.judge(protocol, images, folder, values, place))
    print(f"written to {folder}")


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]DIR",
            help="Evaluations, suites, training runs, the ablation's folder; NAME is how the page calls the model. "
            "Runs of one NAME are seeds of one training.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("outputs/report"),
) -> None:
    """Put evaluations and runs of any number of models on one page, beside the published figures.

    Example: `sdr1 report base=outputs/evaluation/base trained=outputs/evaluation/trained outputs/demo/run`
    """
    from sdr1.report.page import write

    print(write(sources, out))


def _print_figures(result: Result) -> None:
    for name, figure in result.figures.items():
        bounds = "" if figure.low is None else f"  [{figure.low:.4g}, {figure.high:.4g}]"
        value = "-" if figure.value is None else f"{figure.value:.4g}"
        print(f"{name:<44} {value:>8}{bounds}  n={figure.n}")
