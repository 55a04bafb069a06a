"""The errors that sdr1 raises on purpose: a user's mistake, and a run that must stop; and how to quote others'."""

from __future__ import annotations

import textwrap


class UserError(ValueError):
    """Something the user can mend. The message is one line: field, value, fix. The CLI exits with code 2."""


class Unreachable(UserError):
    """What a hub id stands for is not here and cannot be fetched."""


class LearnerLost(RuntimeError):
    """The learner, or what only it holds, is gone; the run goes on from its last snapshot."""


class Terminated(BaseException):
    """The process was asked to stop (SIGTERM); not an Exception, so that nothing on the way swallows it."""


class TrainingError(RuntimeError):
    """Training cannot go on without doing harm: a non-finite number, or a ratio that is not 1 before an update."""


def reason(error: BaseException) -> str:
    """What another library's error says, fit for the middle of a line: its first line, shortened between words."""
    return textwrap.shorten((str(error).strip() or repr(error)).split("\n")[0], 160, placeholder=" ...")
