"""APER (first called ADAM): an adapter trained on the first task, and class means beside those of the frozen model."""

from __future__ import annotations

from typing import ClassVar, Literal

from vpeft.regimes.learner import Learner, Learning, MethodText, Setting, register_learner
from vpeft.regimes.prototypes import NearestMean


@register_learner("aper", paper="2303.07338")
class APER(Learner):
    """score_c = cos([f(x); g(x)], w_c), f the frozen feature and g that of the adapter, w_c the class's mean of both.

    The adapter is trained on task 0 with a head that is then dropped. Later tasks only add means.
    """

    keeps: ClassVar[Literal["nothing", "statistics", "images"]] = "statistics"

    method: MethodText = "adaptformer"
    """what is trained on the first task; the paper has adaptformer, ssf, vpt_shallow, vpt_deep and full fine-tuning"""
    head: Literal["linear", "cosine"] = "cosine"
    """the head of that training"""

    def start(self, setting: Setting) -> Learning:
        return NearestMean(setting, self.method, self.head, ("query", "outlet"))
