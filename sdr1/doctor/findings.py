"""What `sdr1 doctor` says: a line a check, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdr1.doctor.checks import CHECKS
from sdr1.doctor.ground import Ground, survey


@dataclass(frozen=True)
class Finding:
    """One thing that is well, or has to be mended."""

    check: str
    fit: bool
    found: str
    fix: str = ""


def examine(path: Path | None, overrides: Sequence[str] = (), address: str | None = None) -> list[Finding]:
    """What a job with this config would run on: on this driver, and on the cluster that it would join or start."""
    return judge(survey(path, overrides, address))


def judge(ground: Ground) -> list[Finding]:
    """Every check's findings, in the order of the checks."""
    findings = []
    for name, check in CHECKS.items():
        outcome = check(ground)
        if isinstance(outcome, str):
            findings.append(Finding(name, True, outcome))
        else:
            findings += [Finding(name, False, each.found, each.fix) for each in outcome or ()]
    return findings


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"fit": all(each.fit for each in findings), "findings": [asdict(each) for each in findings]}


def lines(findings: Sequence[Finding]) -> list[str]:
    """For people: one line a finding, then how many have to be mended."""
    width = max(len(each.check) for each in findings)
    wrong = sum(not each.fit for each in findings)
    return [
        *(
            f"{'ok ' if each.fit else 'FIX'}  {each.check:<{width}}  "
            + " ".join((each.found + (f"; {each.fix}" if each.fix else "")).split())
            for each in findings
        ),
        "fit" if not wrong else f"{wrong} to mend",
    ]
