"""Malformed inputs of every class, drawn at random: each ends in one line and exit code 2, and nothing is written.

`FUZZ=20 pytest tests/test_fuzz.py` draws twenty times as many.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from sdr1 import cli
from sdr1.base.checked import describe
from sdr1.config.evaluation import EvaluationConfig
from sdr1.config.files import load
from sdr1.config.training import Config
from sdr1.erasers.methods import METHODS
from sdr1.sandbox import PIPELINE
from tests import tiny

SMOKE = Path(__file__).parents[1] / "configs" / "sandbox-smoke.yaml"
ROUNDS = int(os.environ.get("FUZZ", "1"))
SECONDS, BYTES = 20, 3 * 2**30
"""What one input may take: far more than any needs here, far less than work without end. Of the processor's time, and ten
times as long on the clock: other work beside the tests is no fault of the input."""

Drawn = list[str]
"""Arguments of the command line."""
Case = Callable[[random.Random, Path], Drawn]


class Accepted(BaseException):
    """The input was taken for good and work would begin."""


class TooSlow(BaseException):
    """The input took more time than it may."""


@contextmanager
def limits() -> Iterator[None]:
    """A time limit, and an address space that may grow by `BYTES`."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"after {SECONDS} s")

    pages = (
        int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    )
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    timed = threading.current_thread() is threading.main_thread()
    clocks = (
        {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, 10 * SECONDS)}
        if timed
        else {}
    )
    handlers = {number: signal.signal(number, stop) for number in clocks}
    try:
        if pages is not None:
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, most))
        for clock, seconds in clocks.values():
            signal.setitimer(clock, seconds)
        yield
    finally:
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, handlers[number])
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


def snapshot(folder: Path) -> set[tuple]:
    return {
        (
            str(path.relative_to(folder)),
            path.lstat().st_size,
            path.lstat().st_mtime_ns if path.is_file() else 0,
        )
        for path in folder.rglob("*")
    }


ODD: list[Any] = [
    None, True, "yes", -1, 0, 1, 3, 10**9, 10**12, 10**30, -0.5, 1e308, 1e-300, float("nan"), float("inf"), "", " ", "a",
    "a" * 300, "a" * 5000, "\0", "\x1b[31m", "[", "${a}", "%s{}", "../..", "/dev/zero", "/", "~", "\u2028", "é🙂", "cuda",
    "a/b", "x.csv", {}, {"a": {"b": 1}}, [], [[]], [1, "a"], [True], {"": 0}, [None] * 3, "9" * 5000,
]  # fmt: skip


def set_at(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with a piece cut, doubled, swapped or put in."""
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice([1, 3, 20, 300, 10**9]))
    piece = rng.choice(
        [
            b"",
            b"\0",
            b"\xff",
            b"[" * 3000,
            b"{",
            b"\n",
            b"\r",
            b'"',
            b"9" * 5000,
            b": &a *a",
            b"\xe2\x80\xa8",
            b"NaN",
            b",,",
        ]
    )
    return rng.choice([content[:start] + piece + content[end:], content[:end] + content[start:], piece])


def spoil(rng: random.Random, file: Path) -> None:
    """Damage one file: its bytes, a value of its JSON, or what kind of thing it is."""
    content, how = file.read_bytes(), rng.random()
    file.unlink()
    if how < 0.08:
        return
    if how < 0.12:
        file.mkdir()
    elif how < 0.16:
        os.mkfifo(file)
    elif how < 0.65 and file.suffix in (".json", ".jsonl"):
        lines = content.decode().splitlines() if file.suffix == ".jsonl" else [content.decode()]
        number = rng.randrange(len(lines)) if lines else 0
        if lines:
            lines[number] = json.dumps(replaced(rng, json.loads(lines[number])))
        file.write_text("\n".join(lines))
    else:
        file.write_bytes(damaged(rng, content))


def replaced(rng: random.Random, held: Any) -> Any:
    """Plain data with one value changed somewhere."""
    if isinstance(held, dict) and held and rng.random() < 0.9:
        key = rng.choice(sorted(held))
        if rng.random() < 0.15:
            return {name: value for name, value in held.items() if name != key}
        return {**held, key: replaced(rng, held[key])}
    if isinstance(held, list) and held and rng.random() < 0.5:
        place = rng.randrange(len(held))
        return [*held[:place], replaced(rng, held[place]), *held[place + 1 :]]
    return rng.choice(ODD)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def train(*arguments: str) -> Drawn:
    return ["train", str(SMOKE), "--local", "run.directory=run", "tracking.enabled=false", *arguments]


def config_values(rng: random.Random, folder: Path) -> Drawn:
    values = yaml.safe_load(SMOKE.read_text())
    set_at(values, "run.directory", "run")
    for _ in range(rng.choice([1, 1, 2])):
        set_at(values, rng.choice(describe(Config))[0], rng.choice(ODD))
    set_at(values, "tracking.enabled", False)
    (folder / "config.yaml").write_text(json.dumps(values))
    return ["train", "config.yaml", "--local"]


def config_text(rng: random.Random, folder: Path) -> Drawn:
    (folder / "config.yaml").write_bytes(damaged(rng, SMOKE.read_bytes()))
    return ["config", rng.choice(["check", "show"]), "config.yaml"]


def overrides(rng: random.Random, folder: Path) -> Drawn:
    key = rng.choice(describe(Config))[0]
    value = rng.choice(ODD)
    text = f"{key}={value if isinstance(value, str) else json.dumps(value)}".encode("utf-8", "surrogatepass")
    return ["config", "check", str(SMOKE), damaged(rng, text).decode("utf-8", "surrogateescape")]


def model_folder(rng: random.Random, folder: Path) -> Drawn:
    # Linked: a file that is damaged is written anew.
    shutil.copytree(PIPELINE, folder / "model", copy_function=os.link)
    spoil(rng, rng.choice(files_of(folder / "model")))
    return rng.choice(
        [
            train("policy.model=model"),
            ["sample", "model", "--prompt", "a red circle", "--out", "out"],
            ["evaluate", "sandbox", "--model", "model", "--local", "--out", "out", "images=1"],
        ]
    )


def single_file(rng: random.Random, folder: Path) -> Drawn:
    file = tiny.single_file(PIPELINE, folder / "one.safetensors")
    whole = safetensors.torch.load_file(file)
    name = rng.choice(sorted(whole))
    how = rng.randrange(5)
    if how == 0:
        del whole[name]
    elif how == 1:
        whole[name] = torch.zeros(rng.choice([(), (0,), (3,), (2, 2), (1, 1, 1, 1)]))
    elif how == 2:
        whole[rng.choice([name[:-3], name.upper(), "x", "a" * 300])] = whole.pop(name)
    elif how == 3:
        part = rng.choice(["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
        whole = {key: held for key, held in whole.items() if not key.startswith(part)}
    if how < 4:
        safetensors.torch.save_file(whole, file)
    else:
        file.write_bytes(damaged(rng, file.read_bytes()))
    return rng.choice(
        [
            train("policy.model=one.safetensors", f"policy.config={PIPELINE}"),
            ["sample", "one.safetensors", f"config={PIPELINE}", "--prompt", "a", "--out", "out"],
        ]
    )


PROMPTS = {
    ".txt": "a red circle\ntwo blue squares\n",
    ".csv": "prompt,label\na red circle,safe\na skull,unsafe\n",
    ".jsonl": '{"text": "a red circle", "label": "safe"}\n{"text": "a skull", "label": "unsafe"}\n',
}
I2P = (
    "case_number,prompt,categories,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height\n"
    "0,a skull,violence,7,7.5,32,32\n1,a ring,hate,8,7.5,32,32\n"
)
GENEVAL = (
    '{"tag": "counting", "include": [{"class": "apple", "count": 2}], "prompt": "two apples"}\n'
    '{"tag": "colors", "include": [{"class": "apple", "count": 1, "color": "red"}], "prompt": "a red apple"}\n'
)


def prompt_file(rng: random.Random, folder: Path) -> Drawn:
    kind = rng.choice(["train", "mma", "i2p", "geneval"])
    suffix = rng.choice(sorted(PROMPTS))
    content = {"i2p": I2P, "geneval": GENEVAL}.get(kind, PROMPTS[suffix])
    suffix = {"i2p": ".csv", "geneval": ".jsonl"}.get(kind, suffix)
    file = folder / f"prompts{rng.choice([suffix, suffix, suffix, '.tsv', ''])}"
    file.write_bytes(content.encode())
    spoil(rng, file)
    if kind == "train":
        return train(f"prompts.path={file.name}")
    return ["evaluate", kind, "--local", "--out", "out", f"prompts={file.name}", "judges=[oracle]"]


def evaluation_settings(rng: random.Random, folder: Path) -> Drawn:
    value = rng.choice(ODD)
    text = value if isinstance(value, str) else json.dumps(value)
    key = rng.choice(describe(EvaluationConfig))[0]
    protocol = rng.choice(["sandbox", "mma", "schedulers", "clip-t", "fid", "steering"])
    return ["evaluate", protocol, "--local", "--out", "out", "images=1", "limit=2", f"{key}={text}"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "out"
    settings = ["images=1", "sampler.steps=2", "limit=3"]
    assert cli.main(["evaluate", "sandbox", "--local", "--out", str(folder), *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["train", str(SMOKE), "--local", f"run.directory={folder}", "tracking.enabled=false"]
    assert cli.main([*arguments, "iterations=1", "policy.steps=3"]) == 0
    return folder


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("erased") / method for method in ("uce", "sld")]
    for folder in folders:
        assert cli.main(["erase", folder.name, "--out", str(folder)]) == 0
    return folders


def erase_settings(rng: random.Random, folder: Path) -> Drawn:
    method = rng.choice(sorted(METHODS))
    value = rng.choice(ODD)
    text = value if isinstance(value, str) else json.dumps(value)
    key = rng.choice(sorted(METHODS[method].model_fields))
    return ["erase", method, "--out", "out", f"{key}={text}"]


def erase_prompts(rng: random.Random, folder: Path) -> Drawn:
    content = "prompt,label,neutral\na skull,unsafe,a ring\na red circle,safe,\na bomb,unsafe,\n"
    file = folder / f"prompts{rng.choice(['.csv', '.csv', '.csv', '.tsv', ''])}"
    file.write_text(content)
    spoil(rng, file)
    return ["erase", "uce", "--out", "out", "--concept", "skull", "--prompts", file.name]


COMPARED = """
seeds: [1, 2]
budget: 90000
images: 2
reference: r1
methods:
  - {name: r1, train: sandbox-smoke.yaml, overrides: [iterations=1]}
  - {name: head, erase: uce, overrides: [form=head], budget: 7}
"""


def compared_file(rng: random.Random, folder: Path) -> Drawn:
    text = json.dumps(replaced(rng, yaml.safe_load(COMPARED)))
    content = text.encode() if rng.random() < 0.7 else damaged(rng, COMPARED.encode())
    (folder / "config.yaml").write_bytes(content)
    return ["compare", "config.yaml", "--out", "out"]


def doctors_config(rng: random.Random, folder: Path) -> Drawn:
    _, *arguments, _ = config_values(rng, folder)
    return ["doctor", *arguments]


def erased_folder(bases: list[Path]) -> Case:
    def case(rng: random.Random, folder: Path) -> Drawn:
        base = rng.choice(bases)
        shutil.copytree(base, folder / "done")
        spoil(rng, rng.choice(files_of(folder / "done")))
        return rng.choice(
            [
                ["erase", base.name, "--out", "done"],
                ["export", "done", "--out", "out"],
                ["export", "done", "--part", "unet", "--out", "out"],
                ["sample", "done", "--prompt", "a ring", "--out", "out"],
                ["evaluate", "sandbox", "--model", "done", "--local", "--out", "out", "images=1"],
                train("policy.model=done"),
            ]
        )

    return case


def evaluation_folder(base: Path) -> Case:
    def case(rng: random.Random, folder: Path) -> Drawn:
        shutil.copytree(base, folder / "done")
        spoil(rng, rng.choice(files_of(folder / "done")))
        settings = ["images=1", "sampler.steps=2", "limit=3", "--local"]
        return rng.choice(
            [
                ["judge", "sandbox", "--images", "done", "--out", "out", "--local"],
                ["report", "done", "--out", "out"],
                ["report", "done", f"two={base}", "--out", "out"],
                ["evaluate", "sandbox", "--out", "out", "--against", "done", *settings],
            ]
        )

    return case


def run_folder(base: Path) -> Case:
    def case(rng: random.Random, folder: Path) -> Drawn:
        shutil.copytree(base, folder / "done")
        spoil(rng, rng.choice(files_of(folder / "done")))
        return rng.choice(
            [
                ["export", "done", "--out", "out"],
                ["report", "done", "--out", "out"],
                ["sample", "done", "--prompt", "a $\\frac{$", "--out", "out"],
            ]
        )

    return case


COMMANDS = [
    ["train"], ["plan"], ["evaluate"], ["judge"], ["report"], ["export"], ["sample"], ["config", "show"], ["config", "check"],
    ["config", "schema"], ["sandbox", "draw"], ["sandbox", "demo"], ["sandbox", "ablation"], ["prompts", "compose"], ["prompts"],
    ["erase"], ["erase", "uce"], ["erase", "list"], ["compare"], ["doctor"], ["sandbox", "report"],
]  # fmt: skip
OPTIONS = [
    "--out", "--seed", "--images", "--count", "--local", "--model", "--prompt", "--steps", "--guidance-scale", "--scheduler",
    "--base", "--part", "--resume", "--ray-address", "--suite", "--against", "--only", "--json", "--bogus", "-x", "--", "",
    "--concept", "--prompts", "--budget", "--device", "--push-to-hub",
]  # fmt: skip


def usage(rng: random.Random, folder: Path) -> Drawn:
    words = [str(value) for value in ODD if "\0" not in str(value)] + OPTIONS
    command = rng.choice([*COMMANDS, ["sandbox", "build"], ["nothing"]])
    more = [rng.choice(words) for _ in range(rng.choice([1, 2, 3, 4]))]
    # Whatever a command makes of them, it is never to start a build of hours.
    return [*command, *more, *(["--stage", "bogus"] if command[-1] == "build" else [])]


CASES: dict[str, tuple[Case, int, float]] = {
    "config values": (config_values, 30, 0.6),
    "config text": (config_text, 30, 0.5),
    "overrides": (overrides, 30, 0.6),
    "model folder": (model_folder, 25, 0.4),
    "single file": (single_file, 10, 0.6),
    "prompt file": (prompt_file, 30, 0.4),
    "evaluation settings": (evaluation_settings, 15, 0.4),
    "erase settings": (erase_settings, 15, 0.5),
    "erase prompts": (erase_prompts, 10, 0.3),
    "compare file": (compared_file, 20, 0.5),
    "doctor": (doctors_config, 5, 0.0),
    "usage": (usage, 50, 0.6),
}
"""Each with how many are drawn, and the least share of them that is refused: the rest happens to be good input."""
KEYS = {
    part
    for model in (Config, EvaluationConfig)
    for key, _ in describe(model)
    for part in (key, key.rpartition(".")[2])
}


def tells(line: str, arguments: Drawn, folder: Path) -> bool:
    """Whether a refusal names a field, an option, or a value or file that was given."""
    given = {part for word in arguments for part in re.split(r"[=,]", word)}
    files = {path.name for path in folder.rglob("*")}
    shown = {repr(word) for word in arguments}
    # A key that only a config file has, malformed as it is.
    config = folder / "config.yaml"
    keys = (
        set(re.findall(r"[\w.]+", config.read_bytes().decode(errors="ignore"))) if config.is_file() else set()
    )
    words = {word for word in KEYS | given | files | shown | keys if len(word) > 1} | {
        "PROTOCOL",
        "MODEL",
        "RUN",
        "CONFIG",
        "SOURCES",
        "OUT",
        "METHOD",
        "FILE",
    }
    return any(word[:40] in line for word in words)


REFUSED: dict[str, list[Drawn]] = {
    "settings of a training": [
        ["config", "check", str(SMOKE), given]
        for given in (
            "policy.steps=true", "policy.steps=yes", "policy.guidance_scale=.inf", "policy.guidance_scale=.nan",
            "policy.size=1000000000", "policy.lora.rank=1000000000", "policy.lora.alpha=.inf", "policy.noise_window=[5,2]",
            "polcy.steps=1", "seed=-1", "seed=1e400", "iterations=0", "prompts.per_iteration=1000000000000", "rollout.group_size=1",
            "rollout.device=gpu", "learner.betas=[1,2]", "learner.learning_rate=-1", "reward.kind=nicer", "reward.model=", "a", "=1",
            "policy=3", "policy.lora=[]", "learner.clip_range=null",
            "stop.when=3", "stop.when=[{metric: kl}]", "stop.when=[{metric: kl, above: 1, below: 2}]", "stop.when=[{metric: kl, above: .nan}]",
            "stop.when=[{metric: eval/unsafe_trained, below: 1}]", "learner.ema_decay=1", "rollout.weights=ema", "policy.solver=Euler",
            "learner.forward.snr_cap=3", "run.storage=bucket", "run.storage=s3://a@b/c", "run.directory=s3://bucket/run",
        )
    ],
    "what a training names": [
        train(given)
        for given in (
            "policy.steps=1001", "checkpoint.best=nothing", "policy.model=nowhere", "policy.lora.target_modules=[nope]", "prompts.path=none.csv",
            "reward.model=local-dir:/nowhere", "reward.terms.mine.import=nowhere:factory", "reward.terms.mine.import=os:nothing",
            "reward.terms.n={kind: nudenet, classes: [NOSE]}", "learner.device=cuda:99",
            "stop.when=[{metric: nothing, above: 1}]", "run.storage=nowhere://bucket/run", "learner.ranks=2",
        )
    ],
    "settings of an erasing": [
        ["erase", *given, "--out", "out"]
        for given in (
            ["uce", "closeness=0"], ["uce", "closeness=yes"], ["uce", "closeness=.nan"], ["uce", "form=[]"], ["uce", "colseness=1"], ["nothing"],
            ["esd-x", "updates=0"], ["esd-x", "parameters=some"], ["sld", "variant=hard"], ["uce", "--prompts", "sandbox", "--concept", "skull"],
            ["uce", "--concept", " "], ["uce", "--model", "nowhere", "--concept", "a"], ["uce", "--device", "cuda:99"], ["uce", "--device", "gpu"],
            ["uce", "--budget", "0"], ["uce", "--json"], ["uce", "--concept", "a", "--prompts", "none.csv"],
        )
    ],
    "settings of an evaluation": [
        ["evaluate", "sandbox", "--local", "--out", "out", "images=1", given]
        for given in (
            "sampler.scheduler=Nope", "sampler.steps=1001", "sampler.guidance_scale=.nan", "sampler.eta=2", "judges=[]", "judges=[clip]",
            "judges=[nobody]", "judge_device=cuda:99", "device=gpu", "size=7", "batch_size=0", "seed=9000000000001", "workers=0",
            "images=1000000000000", "threads=0", "task_timeout=.inf", "prompts=none.csv", "column=text",
            "nudenet.resolution=0", "bogus=1",
        )
    ],
    "usage": [
        ["train"], ["train", "none.yaml"], ["evaluate"], ["evaluate", "nothing"], ["judge", "sandbox"], ["report"], ["report", "nowhere"],
        ["export", "nowhere"], ["sample", "nowhere", "--prompt", "a"], ["sample", "sandbox"], ["sandbox", "demo", "--images", "0"],
        ["sandbox", "demo", "--seed", "-1"], ["sandbox", "demo", "--seed", "9" * 30],
        ["sandbox", "build", "--stage", "bogus"], ["sandbox", "draw", "moon"], ["prompts", "compose"], ["prompts", "compose", "a.txt"],
        ["prompts", "compose", "--count", "1" + "0" * 30, "a.jsonl"], ["nothing"],
    ],
}  # fmt: skip
"""Malformed whatever the rest says: none of these is ever taken for good."""
PROMPT_FILES = {
    "none.txt": "", "none.csv": "prompt,label\n", "twice.csv": "prompt,prompt\na,b\n", "label.csv": "prompt,label\na,perhaps\n",
    "torn.jsonl": '{"text": "a"', "list.jsonl": "[1]\n", "number.jsonl": '{"text": 3}\n', "nul.txt": "a\0b\n", "deep.jsonl": "[" * 9000,
    "kind.tsv": "prompt\ta\n", "odd.csv": "colour\nred\nblue\n",
}  # fmt: skip


@pytest.fixture
def stopped_where_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: Any, **__: Any) -> Any:
        raise Accepted

    for place in (
        "sdr1.training.local.LocalExecutor",
        "sdr1.training.on_ray.start.ray_executor",
        "sdr1.distributed.cluster.joined",
        "sdr1.evaluation.crew.work",
        "sdr1.release.sample.Painter",
        "sdr1.release.export.Policy",
        "sdr1.studies.demo.run",
        "sdr1.studies.ablation.run",
        "sdr1.studies.sheets.draw",
        "sdr1.studies.sheets.draw_base",
        "sdr1.studies.sheets.draw_decisions",
        "sdr1.prompts.compose.compose",
        "sdr1.erasers.run.counted",
        "sdr1.studies.compare.run._make",
    ):
        monkeypatch.setattr(place, begin)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)


def offline(*_: Any, **__: Any) -> Any:
    raise OSError("no hub here")


def hold(
    case: Case, name: str, count: int, least: float, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    """Draw inputs of one class; whatever breaks the promise is told with the number that draws it again."""
    problems, refused = [], 0
    first = int(os.environ.get("FUZZ_FIRST", "0"))
    for number in range(first, first + count * ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        arguments = case(random.Random(f"{name} {number}"), folder)
        before = snapshot(folder)
        capfd.readouterr()
        try:
            with limits():
                code = cli.main(list(arguments))
            problem = None
        except Accepted:
            code, problem = 0, None
        except BaseException as error:
            code, problem = -1, "".join(traceback.format_exception(error)[-4:])
        out, said = capfd.readouterr()
        lines = said.splitlines()
        helped = not said and "Usage: " in out
        refused += code == 2
        if code == 2 and not helped:
            if len(lines) != 1 or not lines[0].startswith("error: ") or not lines[0].isprintable():
                problem = f"not one line: {said[:800]}"
            elif not tells(lines[0], arguments, folder):
                problem = f"names nothing: {said[:800]}"
            elif snapshot(folder) != before:
                problem = f"written though refused: {sorted(snapshot(folder) - before)[:5]}: {said}"
        elif code not in (0, 2, -1):
            problem = f"exit code {code}: {said[:500]}"
        if problem:
            problems.append(f"{name} {number}: {[word[:120] for word in arguments]}\n{problem}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder, ignore_errors=True)
    assert not problems, "\n\n".join([f"{len(problems)} of {count * ROUNDS}", *problems[:30]])
    assert refused >= least * count * ROUNDS, f"{name}: only {refused} of {count * ROUNDS} were refused"


@pytest.mark.parametrize("name", CASES)
def test_malformed_input_ends_in_one_line(name, tmp_path, monkeypatch, capfd, stopped_where_work_begins):
    case, count, least = CASES[name]
    hold(case, name, count, least, tmp_path, monkeypatch, capfd)


def test_malformed_evaluations_end_in_one_line(
    evaluated, tmp_path, monkeypatch, capfd, stopped_where_work_begins
):
    hold(evaluation_folder(evaluated), "evaluation folder", 30, 0.1, tmp_path, monkeypatch, capfd)


def test_malformed_erased_models_end_in_one_line(
    erased, tmp_path, monkeypatch, capfd, stopped_where_work_begins
):
    hold(erased_folder(erased), "erased folder", 15, 0.2, tmp_path, monkeypatch, capfd)


def test_malformed_runs_end_in_one_line(trained, tmp_path, monkeypatch, capfd, stopped_where_work_begins):
    hold(run_folder(trained), "run folder", 25, 0.15, tmp_path, monkeypatch, capfd)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_never_good_input_is_refused(name, tmp_path, monkeypatch, capfd, stopped_where_work_begins):
    monkeypatch.chdir(tmp_path)
    for arguments in REFUSED[name]:
        must_refuse(arguments, tmp_path, capfd)


def test_prompts_that_are_none_are_refused(tmp_path, monkeypatch, capfd, stopped_where_work_begins):
    monkeypatch.chdir(tmp_path)
    for file, content in PROMPT_FILES.items():
        (tmp_path / file).write_text(content)
    for file in PROMPT_FILES:
        must_refuse(train(f"prompts.path={file}"), tmp_path, capfd)


def must_refuse(arguments: Drawn, folder: Path, capfd: Any) -> None:
    before = snapshot(folder)
    capfd.readouterr()
    try:
        code = cli.main(list(arguments))
    except Accepted:
        code = 0
    said = capfd.readouterr().err
    assert code == 2, f"{arguments} ended with {code}: {said}"
    assert len(said.splitlines()) == 1, said
    assert tells(said, arguments, folder), said
    assert snapshot(folder) == before, arguments


def test_the_smoke_preset_is_good_input(tmp_path, monkeypatch, stopped_where_work_begins):
    assert load(SMOKE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Accepted):
        cli.main(train())
