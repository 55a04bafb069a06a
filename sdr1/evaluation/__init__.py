"""Evaluation: what a model does with held-out prompts."""
