"""FID: features of every image by any extractor, and the Frechet distance of two sets of them."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from sdr1.base.errors import UserError
from sdr1.base.files import file_sha256, write_bytes
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation.images import SUFFIXES, load
from sdr1.evaluation.judges.clip import embedder
from sdr1.evaluation.rows import Record, Row
from sdr1.models import weight_files

_INCEPTION_SIZE = 299


class _Given(torch.nn.Identity):
    """Features that are there already, so wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features: int = width


class Distance(FrechetInceptionDistance):
    """Frechet distance (1706.08500) of sets of features, shape (N, D), float64, of any extractor."""

    _SAVED = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")

    def __init__(self, width: int) -> None:
        super().__init__(_Given(width), reset_real_features=False)

    def of(self, features_ND: np.ndarray) -> float:
        """The distance of the reference (`update(..., real=True)`) from these features."""
        self.reset()
        self.update(torch.from_numpy(features_ND).double(), real=False)
        # Of singular covariances the root is exact to about 1e-7.
        return max(0.0, float(self.compute()))

    def save(self, path: Path, extractor: str, source: str) -> None:
        """Keep the reference's statistics; `source` says what images they are of."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            extractor=extractor,
            source=source,
            **{name: getattr(self, name).numpy() for name in self._SAVED},
        )
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, extractor: str) -> Distance:
        """Raises UserError when the file is none of `save`'s, or of another extractor."""
        try:
            with np.load(path, allow_pickle=False) as found:
                if str(found["extractor"]) != extractor:
                    raise UserError(
                        f"fid.reference: {str(path)!r}: statistics of another feature extractor; give the images"
                    )
                made = cls(len(found["real_features_sum"]))
                for name in cls._SAVED:
                    setattr(made, name, torch.from_numpy(found[name]))
                return made
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"fid.reference: {str(path)!r}: no statistics of sdr1: {error}") from error


class FidJudge:
    """Leaves the features; the distance needs all of them."""

    def __init__(self, config: EvaluationConfig, device: str) -> None:
        self.features: Callable[[np.ndarray], np.ndarray]
        """Of RGB uint8 images (N, H, W, 3), shape (N, D), float32."""
        path = config.fid.inception
        if path is not None:
            self.features, digest = _inception(path, device), file_sha256(path)
        else:
            clip, digest = embedder("clip", config.clip.model, config.clip.pretrained, device)
            self.features = lambda images: clip.images(images).cpu().numpy()
        self.provenance = {
            "judge": "fid",
            "model": path.name if path else config.clip.model,
            "sha256": digest,
            "threshold": None,
        }

    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[Record]:
        return [{"features": pack(row)} for row in self.features(images_NHWC)]


def pack(features_D: np.ndarray) -> str:
    """An image's features as text for its record: little-endian float32 in base64."""
    return base64.b64encode(np.ascontiguousarray(features_D, "<f4").tobytes()).decode()


def unpack(records: Iterable[Record]) -> np.ndarray:
    """Features of records, as `pack` wrote them, shape (N, D), float32."""
    try:
        return np.stack([np.frombuffer(base64.b64decode(record["features"]), "<f4") for record in records])
    except ValueError as error:
        raise UserError(
            f"records-fid.jsonl: features: {error}; remove the file, and `sdr1 evaluate` makes it again"
        ) from error


def reference(path: Path | None, judge: FidJudge, keep: Path, batch: int = 32) -> Distance:
    """The reference: a .npz of an earlier evaluation, or a folder of images, measured unless `keep` is of the same
    images; None takes `keep`.

    Raises:
        UserError: there is none of these.
    """
    if path is None and keep.is_file():
        return Distance.load(keep, str(judge.provenance["sha256"]))
    found = given(path, judge)
    if isinstance(found, Distance):
        return found
    digest = hashlib.sha256()
    for file in found:
        digest.update(f"{file.relative_to(path or file)} {file_sha256(file)}\n".encode())
    return measured(lambda: _same_size(found, batch), judge, keep, digest.hexdigest())


def given(path: Path | None, judge: FidJudge) -> Distance | list[Path]:
    """The statistics that `fid.reference` names, or the files of its images.

    Raises:
        UserError: it names neither.
    """
    extractor = str(judge.provenance["sha256"])
    if path is not None and path.suffix == ".npz" and path.is_file():
        return Distance.load(path, extractor)
    if path is None or not path.is_dir():
        raise UserError(
            f"fid.reference: {None if path is None else str(path)!r}: FID needs reference images; give a folder of "
            "them, such as COCO's val2014, or the reference.npz that an earlier evaluation left"
        )
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise UserError(f"fid.reference: {str(path)!r}: holds {len(files)} images; at least 2 are needed")
    return files


def measured(
    batches: Callable[[], Iterable[np.ndarray]], judge: FidJudge, keep: Path, source: str
) -> Distance:
    """The reference of RGB uint8 images, each batch (N, H, W, 3): its statistics are taken from `keep` where they are of
    the same `source` and extractor, else saved there."""
    extractor = str(judge.provenance["sha256"])
    try:
        with np.load(keep, allow_pickle=False) as held:
            same = (str(held["extractor"]), str(held["source"])) == (extractor, source)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        same = False
    if same:
        return Distance.load(keep, extractor)
    features = np.concatenate([judge.features(images) for images in batches()])
    found = Distance(features.shape[1])
    found.update(torch.from_numpy(features).double(), real=True)
    found.save(keep, extractor, source)
    return found


def _same_size(files: Sequence[Path], batch: int) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    for file in files:
        image = np.asarray(load(file, "fid.reference"))
        if waiting and (len(waiting) == batch or waiting[0].shape != image.shape):
            yield np.stack(waiting)
            waiting = []
        waiting.append(image)
    yield np.stack(waiting)


def _inception(path: Path, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's defaults: PIL's bicubic on float channels to 299 pixels, then (x - 128) / 128 into the network."""
    if not path.is_file():
        raise UserError(
            f"fid.inception: {str(path)!r}: no such file; give inception-2015-12-05.pt of StyleGAN2-ADA's metrics"
        )
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise UserError(f"fid.inception: {str(path)!r}: no TorchScript file that loads") from error
    weight_files.require_finite(network.state_dict(), f"fid.inception: {str(path)!r}")

    def resized(image: np.ndarray) -> np.ndarray:
        size = (_INCEPTION_SIZE, _INCEPTION_SIZE)
        channels = [
            np.asarray(
                Image.fromarray(image[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            )
            for c in range(3)
        ]
        return np.stack(channels).clip(0, 255)

    @torch.no_grad()
    def features(images_NHWC: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.stack([resized(image) for image in images_NHWC])).to(device)
        return network.layers.forward((batch - 128) / 128).reshape(len(batch), -1).float().cpu().numpy()

    return features


def build(config: EvaluationConfig, device: str) -> FidJudge:
    return FidJudge(config, device)
