"""`sdr1 erase`: the folder it leaves, what goes on with it, and what it refuses in one line."""

from __future__ import annotations

import json

import pytest
import torch

from sdr1 import cli
from sdr1.erasers import patched
from sdr1.erasers.methods import METHODS
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
    assert SANDBOX_BUDGET > 0


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
    plain, loaded = patched.load_named(str(folder)), patched.load_named(str(copied))
    assert patched.sha256(plain) != patched.sha256(loaded)
    assert all(torch.equal(a, b) for a, b in zip(plain.unet.parameters(), loaded.unet.parameters()))
    capsys.readouterr()
    for name, damage, said in (
        (
            "patch.json",
            b'{"method": "uce", "settings": {}}',
            "method: 'uce': no method of sdr1 that has a patch",
        ),
        ("patch.json", b'{"method": "sld", "settings": {"scale": -1}}', "settings: scale: -1"),
        ("patch.safetensors", b"no", "truncated or damaged"),
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "METHOD: 'nothing': no such method; use one of uce"),
        (["uce", "--json"], "--json: belongs to `sdr1 erase list`"),
        (["uce", "closness=1"], "closness: unknown key; close to it: closeness"),
        (["uce", "closeness=0"], "closeness: 0"),
        (["uce", "--device", "cuda:77"], "--device: 'cuda:77'"),
        (["uce", "--model", "/nowhere", "--concept", "x"], "/nowhere"),
        (["uce", "--model", "a/b"], "--concept: none given"),
        (["uce", "--budget", "0"], "--budget"),
        (["uce", "--seed", "-1"], "--seed"),
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
