"""Rewards: what a batch of images is worth for its prompt."""
