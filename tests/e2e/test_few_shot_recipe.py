"""The recipe of FGVC's fixed few-shot lists: its methods' counts, and a table out of a small set."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch

import vpeft
from tests.unit.data.test_few_shot_lists import pets
from vpeft.method_spec import parse_one
from vpeft.methods import get
from vpeft.recipes import recipe_file
from vpeft.training.recipe import Recipe

NAME = "fgvc-few-shot-vit-b@noah"
# As NOAH's table of parameters has them to two digits: 0.16 M, 0.29 M, 0.07 M.
COUNTS = {
    "adapter(bottleneck=8)": 12 * (2 * 768 * 8 + 8 + 768),
    "lora(rank=8)": 12 * 2 * 2 * 768 * 8,
    "vpt_deep(tokens=8)": 12 * 8 * 768,
}


def test_counts() -> None:
    text = " ".join(recipe_file(Path(NAME)).read_text().split())
    for written, count in COUNTS.items():
        assert written in text
        spec = parse_one(written)
        with torch.device("meta"):
            backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
            tuned = vpeft.tune(backbone, get(spec.name)(**spec.fields), verify=False, show=False)
        assert tuned.plan().trainable == count, written


def test_the_settings_are_those_of_the_source() -> None:
    made = Recipe.from_toml(recipe_file(Path(NAME)), {"method": "lora", "data.source": "unread"})
    settings = made.optimisation
    assert (settings.epochs, settings.batch, settings.lr, settings.weight_decay) == (100, 64, 5e-3, 1e-4)
    assert (settings.warmup, settings.min_lr, settings.keep) == (10, 1e-5, "last")


@pytest.mark.slow
def test_the_table_of_a_small_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pets(tmp_path / "pets")
    words = ["--sets", str(folder), "--method", "linear_probe", "--backbone", "pocket_vit", "--epochs", "1"]
    words += ["--shots", "1,2", "--seeds", "0,1", "--out", str(tmp_path / "runs")]
    script = str(Path(__file__).parents[2] / "benchmarks" / "fgvc_few_shot.py")
    for _ in range(2):  # the second time from what is there
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(script, run_name="__main__")
    table = (tmp_path / "runs" / "table.md").read_text().splitlines()
    assert table[0] == "| set | 1-shot | 2-shot |" and table[2].startswith("| pets |") and "| mean |" in table[3]
    assert capsys.readouterr().out.count("2-shot seed 1") == 2
