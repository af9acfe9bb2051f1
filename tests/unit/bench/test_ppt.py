"""PPT against the cells that V-PETL Bench prints."""

import pytest

from vpeft.bench.ppt import ppt

# (table and row, score, parameters, recomputed to four decimals, printed). From the survey's numerical check.
PRINTED = [
    ("vtab1k LoRA", 0.7225, 290_000, 0.7136, 0.71),
    ("vtab1k LST", 0.7170, 2_380_000, 0.6535, 0.65),
    ("vtab1k HST", 0.7599, 780_000, 0.7355, 0.74),
    ("fgvc VPT-Deep", 0.8910, 850_000, 0.8600, 0.86),
    ("fgvc Linear probing", 0.7932, 0, 0.7932, 0.79),
    ("video BAPAT Video Swin-B SSv2", 0.5336, 6_180_000, 0.4330, 0.43),
    ("video Prefix-tuning Video Swin-B HMDB51", 0.5613, 6_370_000, 0.4531, 0.45),
    ("coco Partial-1", 0.4920, 12_600_000, 0.3453, 0.35),
    ("coco Mona", 0.5340, 4_160_000, 0.4591, 0.46),
    ("voc Partial-1", 0.8540, 28_340_000, 0.4764, 0.48),
]


@pytest.mark.parametrize(
    ("score", "parameters", "expected", "printed"), [row[1:] for row in PRINTED], ids=lambda v: str(v)
)
def test_ppt_gives_the_published_cells(score: float, parameters: int, expected: float, printed: float) -> None:
    assert ppt(score, parameters) == pytest.approx(expected, abs=5e-5)
    assert round(ppt(score, parameters), 2) == printed


def test_ppt_falls_with_parameters_and_rises_with_the_score() -> None:
    assert ppt(0.8, 0) == 0.8
    assert ppt(0.8, 1e5) > ppt(0.8, 1e6) > ppt(0.8, 1e7)
    assert ppt(0.8, 1e6) > ppt(0.7, 1e6)


@pytest.mark.parametrize(("score", "parameters"), [(72.25, 290_000), (-0.1, 0), (0.5, -1)])
def test_percent_and_negative_counts_are_refused(score: float, parameters: float) -> None:
    with pytest.raises(ValueError, match="PPT takes"):
        ppt(score, parameters)
