"""SimpleCIL: the frozen model and the mean feature of each class; nothing is trained."""

from __future__ import annotations

from typing import ClassVar, Literal

from vpeft.regimes.learner import Learner, Learning, Setting, register_learner
from vpeft.regimes.prototypes import NearestMean


@register_learner("simple_cil", paper="2303.07338")
class SimpleCIL(Learner):
    """score_c = cos(f(x), w_c), w_c the mean of the frozen feature f over the training images of class c."""

    keeps: ClassVar[Literal["nothing", "statistics", "images"]] = "statistics"

    def start(self, setting: Setting) -> Learning:
        return NearestMean(setting, "", "", ("outlet",))
