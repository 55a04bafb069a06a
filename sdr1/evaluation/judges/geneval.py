"""GenEval's judge: Mask2Former finds the objects, CLIP names their colours, `verdict` decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdr1.base.errors import UserError
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation.judges.clip import embedder
from sdr1.evaluation.judges.verdict import THRESHOLD, Detection, verdict
from sdr1.evaluation.rows import Record, Row
from sdr1.models import weight_files
from sdr1.prompts.geneval import COLOURS

_TEMPLATES = ("a photo of a {c} {k}", "a photo of a {c}-colored {k}", "a photo of a {c} object")
_GROUND = 0x99
# Classes that GenEval's prompts call otherwise than COCO, and those for which detectors have two spellings.
_NAMES = {
    "mouse": "computer mouse",
    "keyboard": "computer keyboard",
    "remote": "tv remote",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


class GenEvalJudge:
    def __init__(self, config: EvaluationConfig, device: str) -> None:
        detector = config.geneval.detector
        if detector is None:
            raise UserError(
                "geneval.detector: None: GenEval needs Mask2Former in transformers format; give a folder of, or with a "
                "network the hub id, facebook/mask2former-swin-small-coco-instance"
            )
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        try:
            self._processor = AutoImageProcessor.from_pretrained(detector)
            self._detector = Mask2FormerForUniversalSegmentation.from_pretrained(detector).to(device).eval()
        except (OSError, ValueError) as error:
            raise UserError(
                f"geneval.detector: {detector!r}: no Mask2Former that loads here: {str(error).splitlines()[0][:200]}"
            ) from error
        weight_files.require_finite(self._detector.state_dict(), f"geneval.detector: {detector!r}")
        self._embedder, digest = embedder("geneval", config.geneval.model, config.geneval.pretrained, device)
        self._device = device
        self.provenance = {
            "judge": "geneval",
            "model": detector,
            "sha256": _digest(self._detector),
            "colour_model": config.geneval.model,
            "colour_sha256": digest,
            "threshold": THRESHOLD,
        }

    @torch.no_grad()
    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[Record]:
        records: list[Record] = []
        for image, row in zip(images_NHWC, rows, strict=True):
            found = self._detect(image)
            named: dict[int, str] = {}

            def colour_of(
                each: Detection, image: np.ndarray = image, found: Any = found, named: Any = named
            ) -> str:
                index = next(n for n, (other, _) in enumerate(found) if other is each)
                if index not in named:
                    named[index] = self._colour(image, *found[index])
                return named[index]

            right = verdict([detection for detection, _ in found], row.facts["metadata"], colour_of)
            detections = [
                replace(detection, colour=named.get(n)).asdict() for n, (detection, _) in enumerate(found)
            ]
            records.append({"correct": right, "detections": detections})
        return records

    def _detect(self, image: np.ndarray) -> list[tuple[Detection, np.ndarray]]:
        """Objects and their masks (H, W), bool."""
        inputs = self._processor(images=Image.fromarray(image), return_tensors="pt").to(self._device)
        result = self._processor.post_process_instance_segmentation(
            self._detector(**inputs),
            threshold=THRESHOLD,
            target_sizes=[image.shape[:2]],
            return_binary_maps=True,
        )[0]
        found = []
        # Where nothing is found, `segmentation` is a map of the image, not a list of masks.
        masks = result["segmentation"] if result["segments_info"] else ()
        for info, mask in zip(result["segments_info"], masks, strict=True):
            inside = np.asarray(mask.cpu(), dtype=bool)
            if not inside.any():
                continue
            ys, xs = np.nonzero(inside)
            box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
            kind = self._detector.config.id2label[info["label_id"]]
            found.append((Detection(_NAMES.get(kind, kind), float(info["score"]), box), inside))
        return found

    def _colour(self, image: np.ndarray, detection: Detection, mask: np.ndarray) -> str:
        left, top, right, bottom = map(int, detection.box)
        shown = np.where(mask[..., None], image, np.uint8(_GROUND))[top:bottom, left:right]
        texts = [text.format(c=colour, k=detection.kind) for colour in COLOURS for text in _TEMPLATES]
        classes = self._embedder.texts(texts).view(len(COLOURS), len(_TEMPLATES), -1).mean(1)
        classes = torch.nn.functional.normalize(classes, dim=1)
        return COLOURS[int((self._embedder.images(shown[None]) @ classes.T).argmax())]


def _digest(module: torch.nn.Module) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def build(config: EvaluationConfig, device: str) -> GenEvalJudge:
    return GenEvalJudge(config, device)
