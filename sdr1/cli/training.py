"""`sdr1 train`, and what is done with a run: `plan` before it, `sample` and `export` after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_args

import typer

from sdr1.base.errors import UserError
from sdr1.cli.options import MOST_SEED, Address, ConfigFile, Overrides, different, one_place


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
        str | None,
        typer.Option(
            metavar="RUN",
            help="Run directory, or address of its copy (`run.storage`), to go on with from its newest good checkpoint.",
        ),
    ] = None,
) -> None:
    """Train a policy as CONFIG says; the last line printed is the trained weights' sha256.

    Example: `sdr1 train configs/sandbox.yaml rollout.workers=2 run.directory=outputs/two`
    """
    from sdr1.config.files import load

    one_place(local, ray_address)
    changes = list(overrides or ())
    is_address = resume is not None and "://" in resume
    if resume is not None:
        from sdr1.training.checkpoint import folder_of

        if not is_address and not folder_of(Path(resume)).is_dir():
            raise UserError(f"--resume: {resume!r}: holds no checkpoints; give the directory of a run")
        # Quoted: a folder called 2024 is no number.
        place = f"run.{'storage' if is_address else 'directory'}={json.dumps(resume)}"
        changes += [place, "run.resume=auto"]
    run = load(config, changes)
    if resume is not None and is_address:
        from sdr1.training.run_folder import is_stored

        if not is_stored(resume):
            raise UserError(f"--resume: {resume!r}: holds no checkpoints; give the address of a run's copy")
    from sdr1.training.run import train as start

    result = start(run, local=local, ray_address=ray_address)
    print(f"weights_sha256={result.weights_sha256}")


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Say what a run will do before it starts: counts, FLOPs, bytes moved, memory of each actor, the bottleneck.

    Example: `sdr1 plan configs/sandbox.yaml rollout.workers=4 --json`
    """
    from sdr1.config.files import load
    from sdr1.planning.plan import lines
    from sdr1.planning.plan import plan as make

    found = make(load(config, overrides or ()))
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))
    if found["prompts"]["count"] is None:
        # The rest of the plan holds all the same; a script must not take it for one of a run that can start.
        raise UserError(found["prompts"]["missing"])


def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file; without it only what any job needs.")
    ] = None,
    overrides: Overrides = None,
    ray_address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Look at what a job will run on, driver and every node, before it starts; a line a check, with what to mend.

    Nothing stays behind but MLflow's experiment and a deleted run in it. Exit code 0: fit; 1: something has to be mended.

    Example: `sdr1 doctor configs/sandbox.yaml --ray-address auto run.directory=/shared/outputs/sandbox`
    """
    from sdr1.doctor import findings

    found = findings.examine(config, overrides or (), ray_address)
    print(json.dumps(findings.as_json(found), indent=2) if as_json else "\n".join(findings.lines(found)))
    raise SystemExit(0 if all(each.fit for each in found) else 1)


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run directory; the newest checkpoint is taken, or the best if `stop.when` ended the run. Or a folder that "
            "`sdr1 erase` wrote.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; default: RUN/export.")
    ] = None,
    part: Annotated[
        str, typer.Option(help="pipeline, unet, lora, or kohya: the adapter for other programs.")
    ] = "pipeline",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Private hub repository to upload it to.")
    ] = None,
) -> None:
    """Write a run's weights for plain diffusers, with a model card.

    Example: `sdr1 export outputs/sandbox --part unet --out outputs/safer-unet`
    """
    from sdr1.release.export import Part
    from sdr1.release.export import export as write

    parts = get_args(Part)
    if part not in parts:
        raise UserError(f"--part: {part!r}: use one of {', '.join(parts)}")
    print(write(run, out or run / "export", part, push_to_hub))  # type: ignore[arg-type]


def sample(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run directory, pipeline folder, hub id or `sandbox`.")
    ],
    prompt: Annotated[list[str], typer.Option(help="Text to draw; may be repeated.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="How MODEL's files are read: variant, revision, config, unet."
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=MOST_SEED, help="Seed of a column; may be repeated.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Drawn as before; default: what a run started from.")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="A diffusers scheduler class.")] = "DDIMScheduler",
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Denoising steps.")] = 50,
    guidance_scale: Annotated[
        float, typer.Option(min=1, max=1000, help="Of classifier-free guidance; 1: without it.")
    ] = 5.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("outputs/sample"),
) -> None:
    """Draw prompts x seeds, before and after training.

    Example: `sdr1 sample outputs/sandbox --prompt "a red circle" --seed 0 --seed 1 --steps 8`
    """
    from sdr1.base.checked import checked
    from sdr1.config.files import from_overrides
    from sdr1.config.policy import ModelFiles
    from sdr1.evaluation.rows import Sampler
    from sdr1.release.sample import sample as draw

    files = checked(ModelFiles, from_overrides(overrides or []))
    sampler = Sampler(scheduler, steps, guidance_scale)
    print(draw(model, prompt, different(seed, [0, 1, 2]), out, sampler, base, files))
