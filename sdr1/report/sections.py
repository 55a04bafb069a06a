"""The report's sections in their order: what each shows, how to read it, and what makes its data if there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sdr1.report import plots as figures
from sdr1.report import tables
from sdr1.report.data import Evaluation, Material
from sdr1.report.grids import Grid, grid
from sdr1.report.plots import Plot
from sdr1.report.tables import Table

_ATTACKS = {
    "mma": "Adversarial prompts (MMA-Diffusion)",
    "sneaky": "Adversarial prompts (SneakyPrompt)",
}
_PAIRED = (
    "Differences with a p were tested in pairs of equal prompt and seed: the interval is of a bootstrap over prompts, p "
    "of a two-sided test that flips the signs of the prompts' differences."
)
_PUBLISHED = (
    "Published rows are copied from their papers, not measured here. Base model, prompts, sampler, judge and "
    "threshold differ between papers; only rows made under one protocol are comparable."
)


@dataclass
class PageSection:
    """`missing` names the command that makes the section's data, "" if the data is there; `notes` are caveats."""

    name: str
    title: str
    intro: str
    missing: str = ""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sections(material: Material) -> list[PageSection]:
    """Every section of the page; those without data say so."""
    return [
        _glance(material),
        _training(material),
        _compared(
            material, "nudenet", "Nudity on I2P (NudeNet)", ("i2p",), tables.NUDENET,
            "Pictures in which NudeNet finds an exposed class, over the 4,703 I2P prompts, one picture each. "
            "Lower is better.",
            "sdr1 evaluate i2p --model MODEL",
            "Counts are of pictures per class, not of boxes: score above 0.6, one a class and picture; the total is "
            "the sum of these eight classes. They depend on the detector's file and threshold: see the provenance.",
        ),
        _compared(
            material, "q16", "Inappropriate pictures on I2P (Q16)", ("i2p",), tables.Q16,
            "Share of pictures that Q16 calls inappropriate. Categories overlap; overall is flagged pictures over "
            "all pictures. Lower is better.",
            "sdr1 evaluate i2p --model MODEL",
            "Three protocols carry this name: Q16 alone (SafeDiffusion-R1), Q16 or any of 8 NudeNet classes "
            "(Receler), Q16 or 5 NudeNet classes with ten pictures a prompt (SLD). Figures of different ones do not "
            "compare; \"partial\" rows were published for some of the categories only.",
        ),
        _compared(
            material, "geneval", "What was asked for (GenEval)", ("geneval",), tables.GENEVAL,
            "Share of pictures that show the objects, counts, colours and positions that the prompt names; overall is "
            "the mean of the six tasks. Higher is better.",
            "sdr1 evaluate geneval --model MODEL",
            "The published rows use the official 553 prompts, four pictures each, and Mask2Former.",
        ),
        _compared(
            material, "quality", "Prompt fidelity and realism (CLIP-T, FID)", ("clip-t", "fid"),
            (tables.CLIP_T, tables.FID),
            "Cosine of picture and prompt (higher is better), and the distance of the pictures' features from those "
            "of a reference set (lower is better).",
            "sdr1 evaluate clip-t --model MODEL, sdr1 evaluate fid --model MODEL",
            "The published rows use CLIP ViT-B/32, and clean-fid against COCO pictures: another encoder, feature "
            "extractor, reference set or number of pictures makes another scale.",
        ),
        _per_figure(
            material, "sandbox", "The sandbox",
            "The built-in drawn world, read by its oracle: held-out prompts of the trained unsafe concept, of "
            "concepts never trained on, and of six ordinary tasks.",
        ),
        _ablation(material),
        _alpha(material),
        _per_figure(
            material, "schedulers", "Other schedulers",
            "Unsafe rate when the pictures are drawn by a scheduler that training did not use: safety must not hang "
            "on one sampler.",
        ),
        _steering(material),
        *_others(material),
        _before_after(material),
    ]  # fmt: skip


def _glance(material: Material) -> PageSection:
    section = PageSection(
        "glance",
        "At a glance",
        "The main figure of every protocol that was run; an arrow says what is better.",
    )
    table = tables.glance(material)
    if table.rows:
        section.tables.append(table)
    else:
        section.missing = "sdr1 evaluate suite --model MODEL"
    return section


def _training(material: Material) -> PageSection:
    section = PageSection(
        "training",
        "Safety and utility over training",
        "Lines with marks are figures on held-out prompts at checkpoints; the others are of the pictures that "
        "training itself draws. Over UNet evaluations: a thin line for each run, a thick one for the mean of those of one name.",
    )
    if not material.runs:
        section.missing = "sdr1 train CONFIG"
        return section
    section.plots = figures.training(material.runs) + figures.work(material.runs)
    section.tables = [table for n, run in enumerate(material.runs) if (table := tables.training(run, n)).rows]
    section.notes += [
        f"{run.label}: the last line of its metrics.jsonl is not complete and left out: it is under way, or was killed."
        for run in material.runs
        if run.torn
    ]
    if not section.tables:
        section.notes.append(
            "No held-out figures during training: `evaluation.every=N` in the run's config makes them."
        )
    return section


def _compared(
    material: Material,
    name: str,
    title: str,
    protocols: tuple[str, ...],
    columns: Sequence[tables.Column],
    intro: str,
    command: str,
    caveat: str,
) -> PageSection:
    table = tables.compare(material, name, title, protocols, columns)
    section = PageSection(name, title, intro, tables=[table], notes=[caveat, _PUBLISHED])
    if not table.measured:
        section.missing = command
    if any(each.result.paired for protocol in protocols for each in material.of(protocol)):
        section.notes.insert(0, _PAIRED)
    if any("oracle" in row.source for row in table.measured):
        section.notes.insert(
            0,
            "Rows judged by the oracle are of the sandbox's drawn world: compare them with each other, never with "
            "published rows.",
        )
    return section


def _per_figure(material: Material, protocol: str, title: str, intro: str, name: str = "") -> PageSection:
    name = name or protocol
    section = PageSection(name, title, intro)
    evaluations = material.of(protocol)
    if not evaluations:
        section.missing = f"sdr1 evaluate {protocol} --model MODEL"
        return section
    if plot := figures.rates(name, title, evaluations):
        section.plots.append(plot)
    section.tables.append(tables.by_figure(name, title, evaluations))
    section.notes += [f"{each.label}: {tables.setup(each)}" for each in evaluations if tables.setup(each)]
    section.notes += [_PAIRED] if any(each.result.paired for each in evaluations) else []
    return section


def _ablation(material: Material) -> PageSection:
    title = "Reward ablation"
    section = PageSection(
        "ablation",
        title,
        "The same training with other rewards; a mean over seeds with its lowest and highest.",
    )
    section.tables.append(tables.over_seeds("ablation", title, material.ablation, tables.ABLATION))
    if material.ablation:
        section.plots.append(figures.ablation(material.ablation))
    else:
        section.missing = "make ablation"
    section.notes += [
        "The published CLIP-T of this table is 100 times a cosine; the encoder is that of its own table.",
        _PUBLISHED,
    ]
    return section


def _alpha(material: Material) -> PageSection:
    title = "Alpha sweep"
    section = PageSection(
        "alpha",
        title,
        "The strength of steering against what it costs; a mean over seeds with its lowest and highest.",
    )
    section.tables.append(tables.over_seeds("alpha", title, material.alpha_sweep, tables.ALPHA))
    if material.alpha_sweep:
        section.plots.append(figures.alpha_sweep(material.alpha_sweep))
    else:
        section.missing = "make ablation"
    section.notes += ["The published rewards were read off a figure.", _PUBLISHED]
    return section


def _steering(material: Material) -> PageSection:
    evaluations = material.of("steering")
    section = _per_figure(
        material,
        "steering",
        "Steering of perturbed prompts",
        "Prompts put in other words (synonyms, keywords only, negation), their embeddings in the plane (UMAP), and "
        "how alpha moves them.",
    )
    # Prompts lie where the judge's encoder puts them, whatever model was judged.
    maps = {repr(where): (each.label, where) for each in evaluations if (where := each.points())}
    for n, (label, where) in enumerate(maps.values()):
        title = "Embeddings" if len(maps) == 1 else f"Embeddings, {label}"
        section.plots.append(figures.points(f"steering-map-{n}", title, where))
    if evaluations and len(section.plots) < 2:
        section.notes.append("No map of the embeddings: the evaluation has no points.json.")
    return section


def _others(material: Material) -> list[PageSection]:
    """A section for every protocol that has none of its own."""
    known = ("i2p", "geneval", "clip-t", "fid", "sandbox", "schedulers", "steering")
    protocols = dict.fromkeys(each.result.protocol for each in material.evaluations)
    others = [protocol for protocol in protocols if protocol not in known]
    # Their names are the user's, and names of files come from a section's.
    return [
        _per_figure(
            material,
            protocol,
            _ATTACKS.get(protocol, f"Protocol {protocol}"),
            "Share of adversarial prompts that get an unsafe picture. Lower is better."
            if protocol in _ATTACKS
            else "Every figure it has.",
            f"other-{n}",
        )
        for n, protocol in enumerate(others)
    ]


def _before_after(material: Material) -> PageSection:
    section = PageSection(
        "pictures",
        "The same prompts, the same seeds",
        "Pictures that a judge called unsafe, and those that none has judged, are blurred: choose one to see it.",
    )

    def judged(grid: Grid) -> bool:
        return any(picture.verdict != "not judged" for _, pictures in grid.rows for picture in pictures)

    alike: dict[tuple, list[Grid]] = {}
    for protocol in dict.fromkeys(each.result.protocol for each in material.evaluations):
        evaluations: list[Evaluation] = [each for each in material.of(protocol) if each.manifest()]
        if len(evaluations) > 1 and (made := grid(evaluations)):
            alike.setdefault(made.origin, []).append(made)
    # Protocols that drew the same are shown once, by one that judged the pictures if there is any.
    section.grids = sorted((max(same, key=judged) for same in alike.values()), key=judged, reverse=True)
    if not section.grids:
        section.missing = "sdr1 evaluate sandbox --model MODEL, once for each of two models"
    return section
