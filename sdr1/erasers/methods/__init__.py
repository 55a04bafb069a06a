"""The methods, by the names that `sdr1 erase` takes."""

from __future__ import annotations

from sdr1.erasers.methods.advunlearn import AdvUnlearn
from sdr1.erasers.methods.ca import Ca
from sdr1.erasers.methods.casteer import Casteer
from sdr1.erasers.methods.cpe import Cpe, Cpe4
from sdr1.erasers.methods.doco import DoCo
from sdr1.erasers.methods.erasediff import EraseDiff
from sdr1.erasers.methods.esd import EsdU, EsdX
from sdr1.erasers.methods.fmn import Fmn
from sdr1.erasers.methods.mace import Mace
from sdr1.erasers.methods.rece import Rece
from sdr1.erasers.methods.receler import Receler
from sdr1.erasers.methods.sa import Sa
from sdr1.erasers.methods.saeuron import Saeuron
from sdr1.erasers.methods.safetydpo import SafetyDpo
from sdr1.erasers.methods.sld import Sld
from sdr1.erasers.methods.spm import Spm
from sdr1.erasers.methods.uce import Uce
from sdr1.erasers.protocol import Eraser

METHODS: dict[str, type[Eraser]] = {
    each.name: each
    for each in (
        Uce,
        Rece,
        EsdX,
        EsdU,
        Sld,
        Casteer,
        SafetyDpo,
        Ca,
        Spm,
        Receler,
        Mace,
        EraseDiff,
        Sa,
        Fmn,
        DoCo,
        AdvUnlearn,
        Cpe,
        Cpe4,
        Saeuron,
    )
}
