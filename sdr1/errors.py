"""The errors that sdr1 raises on purpose: a user's mistake, and a run that must stop."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend. The message is one line: field, value, fix. The CLI exits with code 2."""


class TrainingError(RuntimeError):
    """Training cannot go on without doing harm: a non-finite number, or a ratio that is not 1 before an update."""
