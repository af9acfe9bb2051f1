"""Pictures of runs in a ledger: kept for the search run that was chosen, and no more than PNG files."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vpeft.bench import BenchConfig, run_bench
from vpeft.bench.pictures import BadPicture, drop_pictures, keep_pictures, pictures_of
from vpeft.bench.protocol import PROTOCOLS, Grid
from vpeft.bench.splits import Split
from vpeft.bench.suites import suites

from .stand_in import Means, StandIn


def a_png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), shade).save(stream, format="PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class Drawn(Means):
    """A stand-in whose picture says how many samples of which split it is of."""

    def pictures(self, images: Split, split: str) -> dict[str, bytes]:
        return {f"{split}_{images.size}": a_png(7)}


@dataclass(frozen=True)
class Drawing(StandIn):
    def train(self, *given: Any) -> Drawn:
        made = super().train(*given)
        return Drawn(made.centres, made.costs, made.history)


def test_pictures_are_kept_by_name_replaced_and_removed(tmp_path: Path) -> None:
    assert pictures_of(tmp_path, "aa") == {}
    keep_pictures(tmp_path, "aa", {"one": a_png(1), "two": a_png(2)})
    assert pictures_of(tmp_path, "aa") == {"one": a_png(1), "two": a_png(2)}
    keep_pictures(tmp_path, "aa", {"two": a_png(3)})
    assert pictures_of(tmp_path, "aa") == {"two": a_png(3)}
    (tmp_path / "pictures" / "aa" / "bad.png").write_text("<script>", encoding="utf-8")
    with pytest.raises(BadPicture, match=r"bad\.png is no PNG file"):
        pictures_of(tmp_path, "aa")
    drop_pictures(tmp_path, "aa")
    assert pictures_of(tmp_path, "aa") == {}


def test_of_a_search_the_pictures_of_the_chosen_point_remain_and_are_of_the_validation_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = suites()["digits"].tier("full")
    rules = PROTOCOLS[tier.protocol].model_copy(
        update={"name": "digits-two", "grid": Grid(lr=(1e-3, 4e-3), weight_decay=(1e-4,)), "exceptions": {}}
    )
    monkeypatch.setitem(PROTOCOLS, rules.id, rules)
    monkeypatch.setitem(suites()["digits"].tiers, "two", replace(tier, protocol=rules.id))  # type: ignore[arg-type]
    config = BenchConfig(suite="digits", tier="two", methods=("good",), out=tmp_path / "ledger", seeds=2, show=False)
    ledger = run_bench(config, engine=Drawing(tmp_path / "log"))
    final = next(record for record in ledger if record.identity.purpose == "final")
    assert final.chosen is not None
    runs = {record.key: pictures_of(ledger.path, record.key) for record in ledger}
    shown = [key for key, pictures in runs.items() if pictures]
    searched = {key: ledger.get(key) for key in final.chosen.searched}
    best = max(searched, key=lambda key: searched[key].scores.value)  # type: ignore[union-attr]
    assert len(searched) == 2 and shown == [best]
    assert set(runs[best]) == {"val_200"}
