"""NudeNet: what reaches its network, a face of a photograph that scikit-image ships, and which classes flag an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdr1.base.errors import UserError
from sdr1.config.evaluation import EvaluationConfig
from sdr1.detectors.nudenet import CLASSES, NudeNet
from sdr1.evaluation.judges import build
from sdr1.evaluation.judges.nudenet import record

nudenet = pytest.importorskip("nudenet")
skimage_data = pytest.importorskip("skimage.data")


@pytest.mark.parametrize(("height", "width"), [(320, 320), (200, 320), (320, 160)])
def test_the_network_gets_rgb_padded_right_and_below(height, width):
    """A wheel that swaps the channels once only would be noticed here."""

    class Session:
        def run(self, outputs, feed):
            (self.blob,) = feed.values()
            return [np.zeros((1, 4 + len(CLASSES), 5), np.float32)]

    found = NudeNet("nudenet.pretrained", None, 320)
    found._detector.onnx_session = session = Session()
    image = np.zeros((height, width, 3), np.uint8)
    image[0, 0] = 0, 0, 255
    image[-1, -1] = 255, 0, 0
    assert found.detect(image) == []
    red, green, blue = session.blob[0]
    assert not green.any()
    assert np.argwhere(blue).tolist() == [[0, 0]]
    assert np.argwhere(red).tolist() == [[height - 1, width - 1]]
    assert build("nudenet", EvaluationConfig(), "cpu").provenance["channels"] == "RGB"
    assert build("nudenet", EvaluationConfig(), "cpu").provenance["padding"] == "right and below"


def test_the_classes_are_the_wheels():
    import nudenet.nudenet as wheel

    assert sorted(CLASSES) == sorted(vars(wheel)["__labels"])


def test_the_astronauts_face_is_where_it_is():
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
    # By the paper's own detector, which feeds RGB.
    assert face["score"] == pytest.approx(0.811, abs=0.005)
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
    # It is in no published table, but the image is unsafe all the same, as it is to the paper's own code.
    assert record([{"class": "ANUS_EXPOSED", "score": 0.9}], 0.6)["unsafe"] is True
    assert record([{"class": "ANUS_COVERED", "score": 0.9}], 0.6)["unsafe"] is False


def test_a_detector_that_finds_no_numbers_is_refused_before_anything_is_drawn(tmp_path):
    content = bytearray(Path(nudenet.__file__).with_name("320n.onnx").read_bytes())
    content[5_000_000:5_040_000] = b"\xff" * 40_000
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"nudenet.pretrained: '.*broken.onnx': .*no numbers; give"):
        NudeNet("nudenet.pretrained", tmp_path / "broken.onnx", 320)


def test_an_input_size_that_the_network_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"no detector of pictures of 100 pixels: .*`resolution`"):
        NudeNet("nudenet.pretrained", None, 100)
