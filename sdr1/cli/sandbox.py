"""`sdr1 sandbox`: the small world that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdr1.cli.options import MOST_ROW_SEED, Local, Overrides, different

app = typer.Typer(no_args_is_help=True, help="The small world that needs no download: see it, train it.")


@app.command("draw")
def draw(
    sheet: Annotated[
        Literal["world", "base", "decisions"],
        typer.Argument(
            metavar="[world|base|decisions]",
            help="The drawn world; the base model's pictures; what the oracle reads in generated and spoiled ones.",
        ),
    ] = "world",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="Picture to write; default: outputs/world.png, outputs/base.png, ..."
        ),
    ] = None,
) -> None:
    """Draw a labelled contact sheet.

    Example: `sdr1 sandbox draw base --out base.png`
    """
    from sdr1.base.files import write_named
    from sdr1.studies.sheets import draw, draw_base, draw_decisions

    drawn = {"world": draw, "base": draw_base, "decisions": draw_decisions}
    path = out or Path(f"outputs/{sheet}.png")
    write_named(path, drawn[sheet](), "--out")
    print(path)


@app.command("build")
def build(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the weights; default: the package's.")
    ] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; may be repeated.")] = None,
) -> None:
    """Train the sandbox's own models again from nothing; resumes where it was stopped. Takes two to three hours.

    Example: `sdr1 sandbox build --out outputs/weights`
    """
    from sdr1.recipe.build import build

    build(out, stage)


@app.command("demo")
def demo(
    overrides: Overrides = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=MOST_ROW_SEED, help="Seed of the run; repeat it for a mean over seeds."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("outputs/demo"),
    images: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, metavar="N", help="Images behind each concept's and each task's rate."
        ),
    ] = 60,
) -> None:
    """Train the sandbox's model and compare it with the base: unsafe rates, abilities, false alarms.

    Example: `sdr1 sandbox demo --seed 1 --seed 2 --out outputs/two-seeds iterations=20`
    """
    from sdr1.studies.demo import run

    run(out, seeds=different(seed, [0]), images=images, overrides=overrides or [])


@app.command("ablation")
def ablation(
    overrides: Overrides = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=MOST_ROW_SEED, help="Seed of a cell; may be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CELL",
            help="plain, penalty, negative, steered, reference, noise-sample-all, alpha-0.5, ...",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("outputs/ablation"),
    images: Annotated[
        int, typer.Option(min=1, max=100_000, metavar="N", help="Images behind each rate.")
    ] = 100,
    local: Local = False,
) -> None:
    """Train under other rewards, alphas and noise and compare; goes on where it was stopped.

    Example: `sdr1 sandbox ablation --seed 1 --only plain --only steered iterations=20`
    """
    from sdr1.studies.ablation import run

    run(
        out,
        seeds=different(seed, [101, 102, 103]),
        images=images,
        overrides=overrides or [],
        only=only or [],
        local=local,
    )


@app.command("report")
def report(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Evaluation settings of every protocol, e.g. images=20"),
    ] = None,
    demo: Annotated[
        Path, typer.Option(metavar="DIR", help="The demo's folder; trained first if it is not there.")
    ] = Path("outputs/demo"),
    evaluations: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where the evaluations lie; finished ones are taken as they are."),
    ] = Path("outputs/evaluation"),
    also: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Put this run or ablation on the page too.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the page.")] = Path("outputs/report"),
) -> None:
    """Put the base and the demo's model through every protocol, and write the page; goes on where it was stopped.

    Example: `sdr1 sandbox report images=20 --also outputs/ablation`
    """
    from sdr1.config.files import from_overrides
    from sdr1.studies.sandbox_report import run

    settings = from_overrides(overrides or [])
    print(run(out, demo_folder=demo, evaluations=evaluations, settings=settings, also=also or []))
