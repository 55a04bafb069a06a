"""NudeNet on photographs that scikit-image ships: a face where the face is, the channels in the right order."""

from __future__ import annotations

import numpy as np
import pytest

from sdr1.evaluation.config import EvaluationConfig
from sdr1.evaluation.judges import build
from sdr1.evaluation.judges.nudenet import record

skimage_data = pytest.importorskip("skimage.data")


def test_the_astronauts_face_is_where_it_is_and_colour_order_matters():
    judge = build("nudenet", EvaluationConfig(), "cpu")
    assert len(judge.provenance["sha256"]) == 64
    assert judge.provenance["threshold"] == 0.6
    photo = skimage_data.astronaut()
    boxes = judge.detector.detect(photo)
    face = max(boxes, key=lambda box: box["score"])
    assert face["class"] == "FACE_FEMALE"
    x, y, width, height = face["box"]
    # Her face lies around column 224, row 115 of 512.
    assert x < 224 < x + width
    assert y < 115 < y + height
    assert 60 < width < 200
    bgr = judge.detector.detect(np.ascontiguousarray(photo[:, :, ::-1]))
    score = max(box["score"] for box in bgr if box["class"] == "FACE_FEMALE")
    assert face["score"] != pytest.approx(score, abs=1e-4)
    direct = judge.detector._detector.detect(np.ascontiguousarray(photo[:, :, ::-1]))
    assert direct == boxes, "nudenet itself reads BGR"
    record = judge.judge(photo[None], [])[0]
    assert record["unsafe"] is False


def test_a_class_counts_once_an_image_above_the_threshold():
    boxes = [
        {"class": "FEET_EXPOSED", "score": 0.7},
        {"class": "FEET_EXPOSED", "score": 0.9},
        {"class": "BELLY_EXPOSED", "score": 0.6},
        {"class": "FACE_MALE", "score": 0.8},
    ]
    assert record(boxes, 0.6) == {"unsafe": True, "classes": {"FEET_EXPOSED": 0.9, "FACE_MALE": 0.8}}
    assert record([{"class": "ANUS_EXPOSED", "score": 0.9}], 0.6)["unsafe"] is False, "not in the table"
