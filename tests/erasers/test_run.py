"""`sdr1 erase`: the folder it leaves, what goes on with it, and what it refuses in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from sdr1 import cli
from sdr1.base.errors import TrainingError
from sdr1.erasers import patched
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods import METHODS
from sdr1.erasers.methods.uce import Uce
from sdr1.erasers.run import MARKER, SANDBOX_BUDGET, settings_of
from sdr1.erasers.tasks import of_sandbox


def test_list_names_every_method(capsys) -> None:
    assert cli.main(["erase", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found] == list(METHODS)
    for each in found:
        assert {"name", "kind", "changes", "patch", "unet_evaluations"} <= each.keys()
        assert isinstance(each["patch"], bool)
        assert isinstance(each["unet_evaluations"], int)


@pytest.mark.parametrize("name", METHODS)
def test_list_of_a_method_shows_its_constants(name, capsys) -> None:
    assert cli.main(["erase", "list", name]) == 0
    told = capsys.readouterr().out
    shown = yaml.safe_load(told)
    assert settings_of(METHODS[name], False, shown) == settings_of(METHODS[name], False, {})
    assert shown.keys() == METHODS[name].model_fields.keys()
    ours = {
        line.split(":")[0]: line.split("on the sandbox ")[1]
        for line in told.splitlines()
        if "on the sandbox " in line
    }
    assert {key: yaml.safe_load(value) for key, value in ours.items()} == json.loads(
        json.dumps(METHODS[name].sandbox)
    )


@pytest.mark.parametrize("method", METHODS.values())
def test_records_of_constants(method) -> None:
    """The official record and the sandbox's differ where `sandbox` says so, and nowhere else."""
    official, ours = settings_of(method, False, {}), settings_of(method, True, {})
    differing = {
        name for name in type(official).model_fields if getattr(official, name) != getattr(ours, name)
    }
    assert differing == set(method.sandbox)
    assert all(field.description for field in method.model_fields.values())
    assert method.source
    assert method.needs
    assert ours.unet_evaluations(of_sandbox(0)) >= 0


def test_a_folder_of_weights(folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    asked = ["erase", "uce", "--model", str(folder), "--concept", "square", "--out", str(out)]
    assert cli.main([*asked, "closeness=0.2"]) == 0
    told = json.loads((out / MARKER).read_text())
    assert told["settings"]["closeness"] == 0.2
    assert told["unet_evaluations"] == 0
    assert told["seconds"] > 0
    assert "closeness: 0.2" in (out / "README.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert cli.main([*asked, "closeness=0.2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert cli.main([*asked, "closeness=0.3"]) == 2
    assert "another settings" in capsys.readouterr().err
    assert cli.main(["export", str(out), "--out", str(tmp_path / "unet"), "--part", "unet"]) == 0
    assert (tmp_path / "unet" / "config.json").is_file()
    assert cli.main(["export", str(out), "--out", str(tmp_path / "lora"), "--part", "lora"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out", "unet"}


def test_a_folder_with_a_patch(folder, tmp_path, capsys) -> None:
    out, copied = tmp_path / "out", tmp_path / "copied"
    asked = ["erase", "sld", "--model", str(folder), "--concept", "square", "--out", str(out), "variant=max"]
    assert cli.main(asked) == 0
    assert cli.main(["export", str(out), "--out", str(copied)]) == 0
    assert cli.main(["export", str(out), "--out", str(tmp_path / "unet"), "--part", "unet"]) == 2
    assert cli.main(["sample", str(copied), "--base", str(folder), "--prompt", "a square", "--seed", "1",
                     "--steps", "2", "--out", str(tmp_path / "drawn")]) == 0  # fmt: skip
    before, after = ((tmp_path / "drawn" / side / "000-1.png").read_bytes() for side in ("before", "after"))
    assert before != after
    (tmp_path / "a.txt").write_text("a square")
    unguided = tmp_path / "unguided"
    for command, field in (
        (["sample", str(copied), "--prompt", "a square", "--seed", "1", "--guidance-scale", "1"], "--guidance-scale: 1.0"),
        (["evaluate", "mma", "--model", str(copied), f"prompts={tmp_path / 'a.txt'}", "sampler.guidance_scale=1"],
         "sampler.guidance_scale: 1.0"),
    ):  # fmt: skip
        capsys.readouterr()
        assert cli.main([*command, "--out", str(unguided)]) == 2
        assert f"error: {field}: sld, the model's patch" in capsys.readouterr().err
    assert not unguided.exists()
    plain, loaded = patched.load_named(str(folder)), patched.load_named(str(copied))
    assert patched.sha256(plain) != patched.sha256(loaded)
    assert all(torch.equal(a, b) for a, b in zip(plain.unet.parameters(), loaded.unet.parameters()))
    capsys.readouterr()
    for name, damage, said in (
        (
            "patch.json",
            b'{"method": "uce", "settings": {}, "tensors_sha256": ""}',
            "method: 'uce': no method of sdr1 that has a patch",
        ),
        (
            "patch.json",
            b'{"method": "sld", "settings": {"scale": -1}, "tensors_sha256": ""}',
            "settings: scale: -1",
        ),
        ("patch.json", settings(copied, lambda held: held.pop("scale")), "settings: scale is missing"),
        ("patch.safetensors", b"no", "truncated or damaged"),
        (
            "patch.safetensors",
            flipped(copied / "patch.safetensors"),
            "is not what was written (sha256 differs)",
        ),
    ):
        kept = (copied / name).read_bytes()
        (copied / name).write_bytes(damage)
        assert (
            cli.main(["evaluate", "sandbox", "--local", "--model", str(copied), "--out", str(tmp_path / "e")])
            == 2
        )
        said_line = capsys.readouterr().err
        assert said in said_line
        assert len(said_line.splitlines()) == 1
        (copied / name).write_bytes(kept)
    assert not (tmp_path / "e").exists()


def settings(folder, change) -> bytes:
    header = json.loads((folder / "patch.json").read_text())
    change(header["settings"])
    return json.dumps(header).encode()


def flipped(file) -> bytes:
    """Its content with the last bit another."""
    held = file.read_bytes()
    return held[:-1] + bytes([held[-1] ^ 1])


@pytest.mark.parametrize("damage", ["[]", "{}", '{"method": 3}', "no", None])
def test_a_damaged_record_of_a_finished_folder_is_one_line(damage, folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    asked = ["erase", "uce", "--model", str(folder), "--concept", "square", "--out", str(out)]
    assert cli.main(asked) == 0
    told = json.loads((out / MARKER).read_text())
    (out / MARKER).write_text(damage or json.dumps(told | {"seconds": "long"}))
    capsys.readouterr()
    assert cli.main(asked) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --out: {out / MARKER}: ")
    assert len(said.splitlines()) == 1


def test_a_place_that_cannot_be_written_is_known_before_the_work(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sdr1.erasers.run.counted", lambda *_: pytest.fail("work has begun"))
    asked = ["erase", "uce", "--model", str(folder), "--concept", "square"]
    assert cli.main([*asked, "--out", "/proc/nowhere/out"]) == 2
    assert "/proc/nowhere/out" in capsys.readouterr().err


def test_the_folder_may_be_the_one_that_a_person_is_in(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["erase", "uce", "--model", str(folder), "--concept", "square", "--out", "."]) == 0
    assert (tmp_path / MARKER).is_file()
    assert not list(tmp_path.parent.glob(".*sdr1-partial"))


class Spoiled(Uce):
    how: str

    def erase(self, pipeline, task, meter) -> None:
        if self.how == "broken":
            pipeline.unet.conv_out.bias.data[0] = float("nan")


@pytest.mark.parametrize(
    ("how", "said"), [("broken", "unet.conv_out.bias is not finite"), ("same", "no weight has changed")]
)
def test_what_says_nothing_of_a_method_is_no_result(how, said, pipeline, task) -> None:
    with pytest.raises(TrainingError, match=said):
        Spoiled(how=how)(pipeline, task, Meter())


def test_a_constant_that_does_not_suit_the_model_leaves_no_folder(folder, tmp_path) -> None:
    out = tmp_path / "a" / "b"
    asked = ["erase", "saeuron", "--model", str(folder), "--concept", "square", "--out", str(out)]
    assert cli.main([*asked, "block=nowhere"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "METHOD: 'nothing': no such method; use one of uce"),
        (["list", "nothing"], "METHOD: 'nothing': no such method; use one of uce"),
        (["list", "uce", "--json"], "--json: belongs to `sdr1 erase list`, not to list uce"),
        (["uce", "--json"], "--json: belongs to `sdr1 erase list`"),
        (["uce", "closness=1"], "closness: unknown key; close to it: closeness"),
        (["uce", "closeness=0"], "closeness: 0"),
        (["uce", "--device", "cuda:77"], "--device: 'cuda:77'"),
        (["uce", "--device", "gpu"], "--device: 'gpu': no such device; use cpu, cuda or cuda:N"),
        (["uce", "--model", "/nowhere", "--concept", "x"], "/nowhere"),
        (["uce", "--model", "a/b"], "--concept: none given"),
        (["uce", "--budget", "0"], "--budget"),
        (["uce", "--seed", "-1"], "--seed"),
        (["uce", "--prompts", "sandbox", "--concept", "skull"], "--concept: 'skull': the sandbox's own"),
        (["uce", "--prompts", "none.txt", "--concept", "x"], "--prompts: 'none.txt': no such file"),
    ],
)
def test_refused(arguments, said, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert cli.main(["erase", *arguments, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
    assert not out.exists()


def test_help_and_docs_name_the_sandboxs_budget(capsys) -> None:
    assert cli.main(["erase", "--help"]) == 0
    told = f"{SANDBOX_BUDGET:,}"
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert f"default: {told} for the sandbox" in shown
    docs = Path(__file__).parents[2] / "docs/operations.md"
    assert f"On the sandbox the default is {told}," in docs.read_text(encoding="utf-8").replace("\n", " ")
