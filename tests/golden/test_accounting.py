"""The counts that V-PETL Bench prints for dense tasks on Swin, to the last of four digits of a million.

A detector has a norm behind each of its four stages and none at the end; the classifier here has one at the end. The
difference is taken into account, for the methods that train norms.
"""

from __future__ import annotations

import pytest

from tests.golden.counts import SWIN_B, trained
from vpeft.methods import Adapter, AdaptFormer, BitFit, FullFinetuning, LNTune, Method, PartialK

SWIN_L = "swin_large_patch4_window7_224"
WIDTH = {SWIN_B: 128, SWIN_L: 192}


@pytest.mark.parametrize(
    ("method", "model", "norms", "millions"),
    [
        (FullFinetuning(), SWIN_B, 2, 86.7450),
        (FullFinetuning(), SWIN_L, 2, 194.9982),
        (BitFit(relative_position=True), SWIN_B, 1, 0.2017),
        (BitFit(relative_position=True), SWIN_L, 1, 0.3025),
        (LNTune(), SWIN_B, 2, 0.0594),
        (LNTune(), SWIN_L, 2, 0.0891),
        (Adapter(variant="houlsby"), SWIN_B, 0, 3.1073),
        (Adapter(variant="houlsby"), SWIN_L, 0, 4.6595),
        (AdaptFormer(), SWIN_B, 0, 1.5537),
        (AdaptFormer(), SWIN_L, 0, 2.3297),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else None,
)
def test_swin(method: Method, model: str, norms: int, millions: float) -> None:
    stages = [WIDTH[model] * 2**stage for stage in range(4)]
    detector = norms * (sum(stages) - stages[-1])  # four norms instead of the last one
    assert round((trained(method, model=model) + detector) / 1e6, 4) == millions


@pytest.mark.parametrize(("model", "millions"), [(SWIN_B, 12.6016), (SWIN_L, 28.3396)])
def test_partial_1_of_a_detector_is_the_last_block_alone(model: str, millions: float) -> None:
    final_norm = 2 * WIDTH[model] * 8
    assert round((trained(PartialK(k=1), model=model) - final_norm) / 1e6, 4) == millions
