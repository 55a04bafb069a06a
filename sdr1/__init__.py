"""sdr1: distributed online RL that makes text-to-image diffusion models safer."""

__version__ = "0.1.0"
