"""The command line: fast help, exit codes, and bad input that ends in one line before anything is written."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sdr1 import cli
from sdr1.base.errors import Terminated, TrainingError, UserError
from sdr1.config.files import load
from sdr1.config.training import Config

CONFIGS = Path(__file__).parents[2] / "configs"
SMOKE = str(CONFIGS / "sandbox-smoke.yaml")


@pytest.fixture
def train_stub(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Takes the place of `sdr1.training.run`: records the call, raises `outcome` or returns it."""
    stub = types.SimpleNamespace(calls=[], outcome=types.SimpleNamespace(weights_sha256="ab" * 32))

    def train(config: Config, local: bool, ray_address: str | None) -> object:
        stub.calls.append((config, local, ray_address))
        if isinstance(stub.outcome, BaseException):
            raise stub.outcome
        return stub.outcome

    module = types.ModuleType("sdr1.training.run")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sdr1.training.run", module)
    return stub


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    # Modules are counted, not seconds, which hang on the machine: the help may load what Typer's own help loads.
    loaded = (
        "print('loaded:', *sorted({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )

    def packages(help: str, shown: str) -> set[str]:
        code = f"import sys\n{help}\n{loaded}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
        return set(done.stdout.splitlines()[-1].split()[1:])

    empty = "import typer\napp = typer.Typer()\napp.command()(lambda: None)\napp(['--help'], standalone_mode=False)"
    ours = "from sdr1.cli import main\nassert main(['--help']) == 0"
    assert packages(ours, "sandbox") - packages(empty, "--help") == {"sdr1"}


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "plan",
        "doctor",
        "evaluate",
        "judge",
        "compare",
        "report",
        "export",
        "sample",
        "config show",
        "config check",
        "config schema",
        "sandbox draw",
        "sandbox build",
        "sandbox demo",
        "sandbox ablation",
        "prompts compose",
    ],
)
def test_every_command_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    assert f"Example: sdr1 {command}" in " ".join(capsys.readouterr().out.split())


USAGE = {
    "no such command": (["bogus"], ["'bogus'", "see `sdr1 --help`"]),
    "no argument": (["train"], ["'CONFIG'", "see `sdr1 train --help`"]),
    "no option": (["sample", "x"], ["'--prompt'", "see `sdr1 sample --help`"]),
    "option misspelt": (["train", SMOKE, "--bogus"], ["--bogus", "see `sdr1 train --help`"]),
    "option without its value": (["train", SMOKE, "--resume"], ["'--resume'", "requires an argument"]),
    "number too small": (["sandbox", "demo", "--images", "0"], ["--images: '0': ", "equal to 1", "--help"]),
    "number too large": (
        ["prompts", "compose", "--count", "1" + "0" * 30, "a.jsonl"],
        ["--count: '1000", "less"],
    ),
    "seed too large": (["sample", "x", "--prompt", "a", "--seed", "9" * 30], ["--seed: '999", "less"]),
    "guidance without end": (
        ["sample", "x", "--prompt", "a", "--guidance-scale", "inf"],
        ["--guidance-scale: 'inf'"],
    ),
    "no number": (["prompts", "compose", "--count", "x", "a.jsonl"], ["--count: 'x'", "integer"]),
    "unknown choice": (["sandbox", "draw", "x"], ["'x' is not one of 'world'", "sdr1 sandbox draw --help"]),
    "too many arguments": (["config", "schema", "more"], ["(more)", "see `sdr1 config schema --help`"]),
    "a list of protocols for one": (
        ["evaluate", "sandbox", "--suite", "x.yaml"],
        ["--suite: 'x.yaml'", "`sdr1 evaluate suite`"],
    ),
    "one process on a cluster": (
        ["evaluate", "sandbox", "--local", "--ray-address", "auto"],
        ["--ray-address: 'auto' with --local", "drop one"],
    ),
    "one process on a cluster, judged": (
        ["judge", "i2p", "--images", "x", "--local", "--ray-address", "auto"],
        ["--ray-address: 'auto' with --local", "drop one"],
    ),
    "a seed twice in a demo": (["sandbox", "demo", "--seed", "1", "--seed", "1"], ["--seed: 1: given twice"]),
    "a seed twice in an ablation": (["sandbox", "ablation", "--seed", "1", "--seed", "1"], ["--seed: 1:"]),
    "a seed twice in a sample": (
        ["sample", "x", "--prompt", "a", "--seed", "1", "--seed", "1"],
        ["--seed: 1:"],
    ),
    "no name of a model": (["sample", "", "--prompt", "a"], ["policy.model: ''", "give `sandbox`"]),
    "a key like no other": (["config", "show", SMOKE, "qqqqqq=1"], ["qqqqqq: unknown key; leave it out"]),
    "another model's evaluation that is not there": (
        ["evaluate", "sandbox", "--against", "nowhere"],
        ["--against: nowhere/result.json: no such file; give one that is there"],
    ),
}


@pytest.mark.parametrize(("arguments", "parts"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sdr1 {importlib.metadata.version('sdr1')}\n"


def test_nothing_given_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert "Usage: sdr1" in said.out + said.err
    assert "error" not in said.err


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", "\x1b[31m\u2028\x85.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("out", ["{tmp}/file/x.jsonl", "/proc/none/x.jsonl", "{tmp}/" + "a" * 300 + ".jsonl"])
def test_what_the_file_system_refuses_is_one_line(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["prompts", "compose", "--count", "2", out.replace("{tmp}", str(tmp_path))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /")


def test_train_passes_the_config_and_ends_with_the_checksum(
    train_stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", SMOKE, "rollout.workers=3", "--local", "seed=7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "weights_sha256=" + "ab" * 32
    assert train_stub.calls == [(load(SMOKE, ["rollout.workers=3", "seed=7"]), True, None)]
    assert cli.main(["train", SMOKE, "--ray-address", "auto"]) == 0
    assert train_stub.calls[1] == (load(SMOKE), False, "auto")


def test_a_run_to_resume_may_be_called_like_a_number(
    train_stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke = Path(SMOKE).resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024" / "checkpoints").mkdir(parents=True)
    assert cli.main(["train", str(smoke), "--resume", "2024"]) == 0
    ((config, *_),) = train_stub.calls
    assert (config.run.directory, config.run.resume) == (Path("2024"), "auto")


def test_local_run_with_a_cluster_address_is_a_contradiction(
    train_stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", SMOKE, "--local", "--ray-address", "auto"]) == 2
    assert capsys.readouterr().err.startswith("error: --ray-address: 'auto' with --local")
    assert not train_stub.calls


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (UserError("seed: -1: must be\n  0 or more"), 2, "error: seed: -1: must be 0 or more"),
        (TrainingError("loss is NaN in group 3"), 1, "error: loss is NaN in group 3"),
        (KeyboardInterrupt(), 130, None),
        (Terminated("go on with --resume RUN"), 143, "stopped by SIGTERM; go on with --resume RUN"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    outcome: BaseException, code: int, line: str | None, train_stub, capsys: pytest.CaptureFixture[str]
) -> None:
    train_stub.outcome = outcome
    assert cli.main(["train", SMOKE]) == code
    assert capsys.readouterr().err.splitlines() == ([line] if line else [])


def test_an_unexpected_error_keeps_its_traceback(train_stub) -> None:
    train_stub.outcome = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", SMOKE])


def test_show_prints_a_config_that_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", SMOKE, "reward.alpha=0.25"]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert load(shown) == load(SMOKE, ["reward.alpha=0.25"])


def test_check_prints_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", SMOKE, "prompts.per_iteration=4", "rollout.group_size=5"]) == 0
    assert "20 = 4 groups x 5" in capsys.readouterr().out


def test_schema_is_the_configs_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].pop("extends")["type"] == "string"
    assert schema == Config.model_json_schema()


BAD = {
    "unknown key": (
        ["learner.leraning_rate=1"],
        ["learner.leraning_rate", "unknown key", "learner.learning_rate"],
    ),
    "wrong type": (["iterations=many"], ["iterations", "'many'", "integer"]),
    "group size 1": (["rollout.group_size=1"], ["rollout.group_size", "1", "2"]),
    "minibatch": (
        ["prompts.per_iteration=4", "learner.groups_per_update=3"],
        ["learner.groups_per_update", "3", "[1, 2, 4]"],
    ),
    "alpha NaN": (["reward.alpha=nan"], ["reward.alpha", "nan", "finite"]),
    "missing model path": (["policy.model=./no-such-model"], ["policy.model", "'./no-such-model'", "give"]),
    "folder that is no model": (["policy.model={tmp}"], ["policy.model", "{tmp}", "pipeline"]),
    "missing prompt file": (["prompts.path=none.jsonl"], ["prompts.path", "'none.jsonl'", "give"]),
    "empty prompt file": (["prompts.path={tmp}/empty.txt"], ["prompts.path", "empty.txt", "write"]),
    "prompt without a label": (
        ["prompts.path={tmp}/plain.txt"],
        ["prompts.path", "plain.txt", "a red circle", "label"],
    ),
    "unknown label": (
        ["prompts.path={tmp}/odd.jsonl"],
        ["prompts.path", "odd.jsonl", "line 1", "'naughty'", "unsafe"],
    ),
    "run directory is a file": (
        ["run.directory={tmp}/plain.txt"],
        ["run.directory", "plain.txt", "cannot be a folder", "choose"],
    ),
    "steps beyond the schedule": (["policy.steps=1001"], ["policy.steps", "1001", "at most"]),
    "a monitor of other pictures": (["policy.size=64"], ["reward.monitor", "64", "reward.monitor=null"]),
    "no such layers for LoRA": (
        ["policy.trainable=lora", "policy.lora.target_modules=[nothing]"],
        ["policy.lora.target_modules", "'nothing'", "to_q"],
    ),
    "missing reward model": (["reward.model=local-dir:none"], ["reward.model", "none"]),
}
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
for role in ("rollout", "reward", "learner"):
    BAD[f"GPU absent for {role}"] = (
        [f"{role}.device=cuda"],
        [f"{role}.device", "'cuda'", f"{role}.device=cpu"],
    )


@pytest.mark.parametrize("where", ["--local", "ray"])
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [pytest.param(*case, id=name, marks=NO_GPU if "GPU" in name else ()) for name, case in BAD.items()],
)
def test_bad_input_is_one_line_before_anything_is_written(
    overrides: list[str],
    parts: list[str],
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "plain.txt").write_text("a red circle\n")
    (tmp_path / "odd.jsonl").write_text('{"text": "a red circle", "label": "naughty"}\n')
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    arguments = [
        "train",
        SMOKE,
        "run.directory=run",
        *(text.replace("{tmp}", str(tmp_path)) for text in overrides),
    ]

    assert cli.main([*arguments, *(["--local"] if where == "--local" else [])]) == 2

    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part.replace("{tmp}", str(tmp_path)) in lines[0]
    assert set(tmp_path.rglob("*")) == before
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
