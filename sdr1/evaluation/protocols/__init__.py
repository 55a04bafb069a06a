"""The protocols: one benchmark a file, and a line of it here."""

from __future__ import annotations

from sdr1.evaluation.protocols import attacks, clip_t, fid, geneval, i2p, sandbox, schedulers, steering

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        sandbox.PROTOCOL,
        i2p.PROTOCOL,
        geneval.PROTOCOL,
        clip_t.PROTOCOL,
        fid.PROTOCOL,
        schedulers.PROTOCOL,
        steering.PROTOCOL,
        attacks.MMA,
        attacks.SNEAKY,
    )
}
"""Every protocol by its name."""
