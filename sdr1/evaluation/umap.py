"""The map of the steering study: prompts' embeddings before and after steering, in two dimensions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdr1.base.files import write_text
from sdr1.evaluation.judges.steering import SteeringJudge
from sdr1.evaluation.rows import Row

_STEERED = 0.5


def write_points(
    path: Path,
    judge: SteeringJudge,
    groups: dict[str, list[Row]],
    forms: dict[str, list[tuple[Row, str]]],
) -> None:
    """`points.json`: {x, y, group, text} of every text as it is, and of the unsafe ones steered."""
    texts: dict[tuple[str, str], None] = {("safe", row.prompt): None for row in groups["safe"]}
    for form, pairs in forms.items():
        texts |= {(f"unsafe, {form}", text): None for _, text in pairs}
    plain = list(texts)
    steered = [(f"steered, alpha {_STEERED}", text) for group, text in plain if group == "unsafe, original"]
    embedded = [judge.target([text for _, text in plain], 0.0)]
    if steered:
        embedded.append(judge.target([text for _, text in steered], _STEERED))
    places = _embed(np.concatenate([each.cpu().numpy() for each in embedded]))
    points = [
        {"x": float(x), "y": float(y), "group": group, "text": text}
        for (x, y), (group, text) in zip(places, [*plain, *steered], strict=True)
    ]
    write_text(path, json.dumps(points, indent=1) + "\n")


def _embed(vectors_ND: np.ndarray) -> Sequence[np.ndarray]:
    """UMAP by cosine, the same for the same vectors."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        neighbours = max(2, min(15, len(vectors_ND) - 1))
        return umap.UMAP(
            n_neighbors=neighbours, metric="cosine", random_state=0, init="random"
        ).fit_transform(vectors_ND)
