"""The command line: `sdr1 train`, `sdr1 report`, `sdr1 config`, `sdr1 sandbox`. Heavy imports wait inside the commands."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sdr1.errors import Terminated, TrainingError, UserError

app = typer.Typer(
    help="Make a text-to-image diffusion model safer with distributed online RL.",
    epilog="Start here: sdr1 sandbox demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at a config before it runs.")
sandbox_app = typer.Typer(
    no_args_is_help=True, help="The small world that needs no download: see it, train it."
)
prompts_app = typer.Typer(no_args_is_help=True, help="Make prompts to train on.")
app.add_typer(config_app, name="config")
app.add_typer(prompts_app, name="prompts")
app.add_typer(sandbox_app, name="sandbox")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/sandbox.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Fields to change, e.g. learner.learning_rate=2e-5"),
]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="One process, no Ray; the same weights bit for bit.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR", help="Ray cluster to join, e.g. `auto`; without it Ray starts on this machine."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run directory to go on with, from its newest good checkpoint."),
    ] = None,
) -> None:
    """Train a policy as CONFIG says; the last line printed is the trained weights' sha256.

    Example: `sdr1 train configs/sandbox.yaml rollout.workers=2 run.directory=outputs/two`
    """
    from sdr1.config import load

    if local and ray_address:
        raise UserError(
            f"--ray-address: {ray_address!r} with --local: a local run has no cluster; drop one of them"
        )
    changes = list(overrides or ())
    if resume is not None:
        from sdr1.checkpoint import folder_of

        if not folder_of(resume).is_dir():
            raise UserError(f"--resume: {str(resume)!r}: holds no checkpoints; give the directory of a run")
        # Quoted: a folder called 2024 is no number.
        changes += [f"run.directory={json.dumps(str(resume))}", "run.resume=auto"]
    run = load(config, changes)
    from sdr1.train import train as start

    result = start(run, local=local, ray_address=ray_address)
    print(f"weights_sha256={result.weights_sha256}")


@app.command()
def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]DIR",
            help="Evaluations, suites, training runs, the ablation's folder; NAME is how the page calls the model.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("outputs/report"),
) -> None:
    """Put evaluations and runs of any number of models on one page, beside the published figures.

    Example: `sdr1 report base=outputs/evaluation/base trained=outputs/evaluation/trained outputs/demo/run`
    """
    from sdr1.report.page import write

    print(write(sources, out))


EvaluationSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings, e.g. prompts=i2p.csv q16.prompts=prompts.p workers=4"
    ),
]
Local = Annotated[bool, typer.Option("--local", help="One process, no Ray.")]
Address = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="Ray cluster to join; without it Ray starts on this machine."),
]
Against = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Another model's evaluation of the same rows: adds paired tests."),
]


@app.command()
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
    from sdr1.evaluation import run as runner
    from sdr1.evaluation.config import from_overrides

    place, values = runner.Place(local, ray_address, against), from_overrides(overrides or [])
    folder = out or Path("outputs/evaluation") / protocol
    if protocol == "suite":
        runner.suite(_suite(suite), model, folder, values, place)
    else:
        _print_figures(runner.evaluate(protocol, model, folder, values, place))
    print(f"written to {folder}")


@app.command()
def judge(
    protocol: Annotated[str, typer.Argument(metavar="PROTOCOL", help="As of `sdr1 evaluate`.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Images named after their rows.")],
    overrides: EvaluationSettings = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; default: the images' own.")
    ] = None,
    against: Against = None,
    local: Local = False,
    ray_address: Address = None,
) -> None:
    """Judge images that were made elsewhere, by a protocol's judges.

    Example: `sdr1 judge i2p --images drawn --out outputs/judged prompts=i2p.csv judges=[nudenet]`
    """
    from sdr1.evaluation import run as runner
    from sdr1.evaluation.config import from_overrides

    place, values = runner.Place(local, ray_address, against), from_overrides(overrides or [])
    _print_figures(runner.judge(protocol, images, out or images, values, place))
    print(f"written to {out or images}")


def _suite(path: Path | None) -> list:
    from sdr1.evaluation.run import default_suite

    if path is None:
        return default_suite()
    import yaml

    if not path.is_file():
        raise UserError(f"--suite: {str(path)!r}: no such file; give a yaml list of {{protocol, settings}}")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--suite: {str(path)!r}: cannot be read: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--suite: {str(path)!r}: not a list of {{protocol, settings}}")
    return entries


def _print_figures(result: dict) -> None:
    for name, figure in result["figures"].items():
        bounds = "" if figure["low"] is None else f"  [{figure['low']:.4g}, {figure['high']:.4g}]"
        value = "-" if figure["value"] is None else f"{figure['value']:.4g}"
        print(f"{name:<44} {value:>8}{bounds}  n={figure['n']}")


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Say what a run will do before it starts: counts, FLOPs, bytes moved, memory of each actor, the bottleneck.

    Example: `sdr1 plan configs/sandbox.yaml rollout.workers=4 --json`
    """
    from sdr1.config import load
    from sdr1.plan import lines
    from sdr1.plan import plan as make

    found = make(load(config, overrides or ()))
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory; its newest checkpoint is taken.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; default: RUN/export.")
    ] = None,
    part: Annotated[str, typer.Option(help="pipeline, unet or lora.")] = "pipeline",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Private hub repository to upload it to.")
    ] = None,
) -> None:
    """Write a run's weights for plain diffusers, with a model card.

    Example: `sdr1 export outputs/sandbox --part unet --out outputs/safer-unet`
    """
    parts = ("pipeline", "unet", "lora")
    if part not in parts:
        raise UserError(f"--part: {part!r}: use one of {', '.join(parts)}")
    from sdr1.export import export as write

    print(write(run, out or run / "export", part, push_to_hub))  # type: ignore[arg-type]


@app.command()
def sample(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run directory, pipeline folder, hub id or `sandbox`.")
    ],
    prompt: Annotated[list[str], typer.Option(help="Text to draw; may be repeated.")],
    seed: Annotated[list[int] | None, typer.Option(help="Seed of a column; may be repeated.")] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Drawn as before; default: what a run started from.")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="A diffusers scheduler class.")] = "DDIMScheduler",
    steps: Annotated[int, typer.Option(min=1)] = 50,
    guidance_scale: Annotated[float, typer.Option(min=1)] = 5.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("outputs/sample"),
) -> None:
    """Draw prompts x seeds, before and after training.

    Example: `sdr1 sample outputs/sandbox --prompt "a red circle" --seed 0 --seed 1 --steps 8`
    """
    from sdr1.sample import Sampling
    from sdr1.sample import sample as draw

    print(draw(model, prompt, seed or [0, 1, 2], out, Sampling(scheduler, steps, guidance_scale), base))


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved config as YAML, every field with its meaning; it can be saved and run.

    Example: `sdr1 config show configs/sandbox.yaml rollout.group_size=24`
    """
    from sdr1.config import load
    from sdr1.config_text import annotated_yaml

    print(annotated_yaml(load(config, overrides or ())), end="")


@config_app.command("check")
def config_check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Validate a config and print the arithmetic of one iteration: groups, images, updates, UNet evaluations.

    Example: `sdr1 config check configs/sandbox.yaml learner.groups_per_update=3`
    """
    from sdr1.config import load
    from sdr1.config_text import batch_arithmetic

    rows = batch_arithmetic(load(config, overrides or ()))
    width = max(len(name) for name, _ in rows)
    for name, arithmetic in rows:
        print(f"{name:<{width}}  {arithmetic}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a config, for editors and scripts.

    Example: `sdr1 config schema > sdr1.schema.json`
    """
    from sdr1.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@prompts_app.command("compose")
def prompts_compose(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to write.")],
    count: Annotated[int, typer.Option(min=1, help="Prompts, all different.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other prompts.")] = 0,
) -> None:
    """Write safe prompts that ask for objects, colours, counts and positions, to keep a model's abilities in training.

    Example: `sdr1 prompts compose --count 5000 --seed 1 data/compose.jsonl`
    """
    from sdr1.compose import write

    print(write(out, count, seed))


@sandbox_app.command("draw")
def sandbox_draw(
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
    from sdr1.sandbox.sheet import draw, draw_base, draw_decisions

    drawn = {"world": draw, "base": draw_base, "decisions": draw_decisions}
    print(drawn[sheet](out or Path(f"outputs/{sheet}.png")))


@sandbox_app.command("build")
def sandbox_build(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the weights; default: the package's.")
    ] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; may be repeated.")] = None,
) -> None:
    """Train the sandbox's own models again from nothing; resumes where it was stopped. Takes up to two hours.

    Example: `sdr1 sandbox build --out outputs/weights`
    """
    from sdr1.sandbox.build import build

    build(out, stage)


@sandbox_app.command("demo")
def sandbox_demo(
    overrides: Overrides = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of the run; repeat it for a mean over seeds.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("outputs/demo"),
    images: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images behind each concept's and each task's rate.")
    ] = 60,
) -> None:
    """Train the sandbox's model and compare it with the base: unsafe rates, abilities, false alarms.

    Example: `sdr1 sandbox demo --seed 1 --seed 2 --out outputs/two-seeds iterations=20`
    """
    from sdr1.sandbox.demo import run

    run(out, seeds=seed or [0], images=images, overrides=overrides or [])


@sandbox_app.command("ablation")
def sandbox_ablation(
    overrides: Overrides = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed of a cell; may be repeated.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CELL", help="plain, penalty, negative, steered, reference, alpha-0.5, ..."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("outputs/ablation"),
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Images behind each rate.")] = 100,
    local: Local = False,
) -> None:
    """Train under other rewards and alphas and compare; goes on where it was stopped.

    Example: `sdr1 sandbox ablation --seed 1 --only plain --only steered iterations=20`
    """
    from sdr1.sandbox.ablation import run

    run(
        out,
        seeds=seed or [101, 102, 103],
        images=images,
        overrides=overrides or [],
        only=only or [],
        local=local,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 the run had to stop, 2 the user can mend it, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    try:
        app(arguments, prog_name="sdr1")
    except UserError as error:
        return _fail(error, 2)
    except TrainingError as error:
        return _fail(error, 1)
    except Terminated as stop:
        print(f"stopped by SIGTERM; {stop}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
