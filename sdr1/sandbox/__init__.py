"""The sandbox: a small world of pictures with a real diffusion pipeline and a real CLIP, shipped in the package."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
PIPELINE = WEIGHTS / "pipeline"
CLIP = WEIGHTS / "clip"
ORACLE = WEIGHTS / "oracle.safetensors"
