"""The model card of a folder of weights that sdr1 leaves: where they come from, what was measured, what they are for."""

from __future__ import annotations

from collections.abc import Sequence

_USE = """\
This model was trained to draw fewer unsafe pictures. It lowers their rate, it does not exclude them: keep filters and
review where they are needed. It is meant for research on safer image generation and for products that add their own
safeguards. It is not meant for making harmful, sexual or deceptive pictures of people, nor as the only safeguard of a
service. Judge it on your own prompts before you rely on it."""


def model_card(
    model: str, origin: Sequence[str], results: Sequence[str], use: Sequence[str], config: str
) -> str:
    """Markdown with hub metadata of what was made of `model`; `origin` and `results` are lines, `config` is YAML."""
    metadata = ["---", "library_name: diffusers", "pipeline_tag: text-to-image", "tags: [safety, sdr1]"]
    if model.count("/") == 1:
        metadata += [f"base_model: {model}", "license: other", "license_name: of-the-base-model"]
    return "\n".join(
        [
            *metadata,
            "---",
            f"# {model}, made safer with sdr1",
            "",
            "## Where it comes from",
            *origin,
            "",
            "## Results",
            *(results or ["Not judged yet: `sdr1 evaluate` writes what belongs here."]),
            "",
            "## Use",
            "",
            *use,
            "",
            "## Intended use and limits",
            _USE,
            "",
            "## Licence",
            "The base model's licence, with its use restrictions, holds for these weights too.",
            "",
            "## Config",
            "",
            "```yaml",
            config.rstrip(),
            "```",
            "",
        ]
    )
