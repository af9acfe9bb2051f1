"""Arguments of a wrong kind: each public function names the argument, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vpeft
from tests.models import tiny_vit as vit
from vpeft.arguments import COUNT, IN_ORDER, PATH, SAMPLES, TEXT, TEXTS, WHOLE, WrongArgument, list_of, one_of, require
from vpeft.methods import LoRA
from vpeft.settings import BadSettings

SET = TensorDataset(torch.zeros(4, 3, 32, 32), torch.arange(4) % 2)
WRONG: dict[str, Any] = {
    "none": None,
    "a number": 3,
    "nan": float("nan"),
    "no text": "",
    "a NUL": "a\0b",
    "bytes": b"x",
    "a class": LoRA,
    "a mapping": {},
    "a list": [],
    "a set": {1},
    "an object": object(),
    "a tensor": torch.zeros(2),
    "a function": lambda *given: 1,
}
_STATE = nn.Linear(1, 1).state_dict()


@pytest.fixture(scope="module")
def tuned() -> vpeft.TunedModel:
    return vpeft.tune(vit(), LoRA(rank=1), num_classes=2, verify=False)


# Each is called with a wrong value; those that are right for a function are named after it.
CALLS: dict[str, tuple[Callable[[Any, vpeft.TunedModel], Any], set[str]]] = {
    "load": (lambda wrong, tuned: vpeft.load(vit(), wrong), set()),
    "load on": (lambda wrong, tuned: vpeft.load(wrong, "a.safetensors"), set()),
    "tune": (lambda wrong, tuned: vpeft.tune(wrong, LoRA()), set()),
    "tune by": (lambda wrong, tuned: vpeft.tune(vit(), wrong, num_classes=2), set()),
    "head": (lambda wrong, tuned: vpeft.tune(vit(), LoRA(), head=wrong, verify=False), {"none"}),
    "task": (lambda wrong, tuned: vpeft.tune(vit(), LoRA(), task=wrong, verify=False), {"none"}),
    "classes": (lambda wrong, tuned: vpeft.tune(vit(), LoRA(), num_classes=wrong, verify=False), {"none", "a number"}),
    "name": (lambda wrong, tuned: vpeft.tune(vit(), LoRA(), num_classes=2, name=wrong), set()),
    "statistics": (lambda wrong, tuned: vpeft.tune(vit(), LoRA(), num_classes=2, statistics=wrong), set()),
    "train": (lambda wrong, tuned: tuned.attach(LoRA(), name="b", train=wrong, num_classes=2), {"a mapping", "a list"}),
    "describe": (lambda wrong, tuned: vpeft.describe(wrong), set()),
    "fit": (lambda wrong, tuned: vpeft.fit(tuned, wrong, epochs=1, progress=False), set()),
    "fit what": (lambda wrong, tuned: vpeft.fit(wrong, SET, epochs=1, progress=False), set()),
    "fit by": (lambda wrong, tuned: vpeft.fit(tuned, SET, optimisation=wrong, epochs=0), set()),
    "epochs": (lambda wrong, tuned: vpeft.fit(tuned, SET, epochs=wrong, progress=False), {"none", "a number"}),
    "evaluate": (lambda wrong, tuned: vpeft.evaluate(tuned, wrong), set()),
    "evaluate what": (lambda wrong, tuned: vpeft.evaluate(wrong, SET), set()),
    "save": (lambda wrong, tuned: tuned.save(wrong), set()),
    "labels": (lambda wrong, tuned: tuned.save("a.safetensors", labels=wrong), {"none"}),
    "enable": (lambda wrong, tuned: tuned.enable(wrong), set()),
    "plan": (lambda wrong, tuned: tuned.plan(wrong), {"none"}),
    "each": (lambda wrong, tuned: tuned.each(torch.zeros(2, 3, 32, 32), wrong), set()),
    "call": (lambda wrong, tuned: tuned(wrong), set()),
    "read_manifest": (lambda wrong, tuned: vpeft.read_manifest(wrong), set()),
    "rename_classes": (lambda wrong, tuned: vpeft.rename_classes(wrong, ["x"]), set()),
    "create_backbone": (lambda wrong, tuned: vpeft.create_backbone(wrong), set()),
    "open_data": (lambda wrong, tuned: vpeft.open_data(wrong), set()),
    "get_task": (lambda wrong, tuned: vpeft.get_task(wrong), set()),
    "get_head": (lambda wrong, tuned: vpeft.get_head(wrong), set()),
    "run_recipe": (lambda wrong, tuned: vpeft.run_recipe(wrong), set()),
    "run_recipes": (lambda wrong, tuned: vpeft.run_recipes(wrong), set()),
    "run_bench": (lambda wrong, tuned: vpeft.run_bench(wrong), set()),
    "fuse": (lambda wrong, tuned: vpeft.fuse(vit(), wrong), set()),
    "fit_together": (lambda wrong, tuned: vpeft.fit_together(wrong, SET), set()),
    "fit_tasks": (lambda wrong, tuned: vpeft.fit_tasks(wrong, SET), set()),
    "accelerate": (lambda wrong, tuned: vpeft.accelerate(wrong), set()),
    "tracker": (lambda wrong, tuned: vpeft.tracker(wrong, "runs"), set()),
    "timm_model": (lambda wrong, tuned: vpeft.timm_model(wrong), set()),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_wrong_kind_is_refused(
    call: str, tuned: vpeft.TunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, right = CALLS[call]
    for name, wrong in WRONG.items():
        if name not in right:
            with pytest.raises(vpeft.VpeftError) as caught:
                function(wrong, tuned)
            assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value), name


def test_exchanged_arguments_are_named(tuned: vpeft.TunedModel) -> None:
    for model in (vit(), tuned):
        with pytest.raises(WrongArgument, match=r"load\(model, path\).*'a\.safetensors'.*are exchanged"):
            vpeft.load("a.safetensors", model)  # type: ignore[arg-type]
    with pytest.raises(WrongArgument, match="exchanged"):
        vpeft.fit(SET, tuned)  # type: ignore[arg-type]


def test_a_class_a_loader_and_a_state_dict_are_named(tuned: vpeft.TunedModel) -> None:
    with pytest.raises(vpeft.VpeftError, match=r"LoRA\(\)"):
        vpeft.tune(vit(), LoRA)  # type: ignore[arg-type]
    for call in (vpeft.fit, vpeft.evaluate):
        with pytest.raises(vpeft.VpeftError, match=r"loader\.dataset"):
            call(tuned, DataLoader(SET))  # type: ignore[arg-type]
    with pytest.raises(WrongArgument, match=r"`val` must be .*, or None.*loader\.dataset"):
        vpeft.fit(tuned, SET, DataLoader(SET))  # type: ignore[arg-type]
    with pytest.raises(WrongArgument, match="an OrderedDict was given"):
        vpeft.tune(_STATE, LoRA())  # type: ignore[arg-type]
    with pytest.raises(WrongArgument, match="takes others"):
        vpeft.tune(vit(), LoRA(), head=lambda width: nn.Linear(width, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.zeros(3, 32, 32), r"images\[None\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "Preprocessing"),
        (np.zeros((1, 3, 32, 32)), "ndarray"),
        ([torch.zeros(3, 32, 32)], "list"),
    ],
)
def test_inputs_that_are_no_images(inputs: Any, said: str, tuned: vpeft.TunedModel) -> None:
    with pytest.raises(WrongArgument, match=said):
        tuned(inputs)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lr": "x"}, "Optimisation.lr = 'x'"),
        ({"lr": float("nan")}, "greater than 0"),
        ({"epoch": 3}, "no option 'epoch'. Did you mean 'epochs'"),
        ({"batch": 2, "accumulate": 4}, "^Optimisation: "),
    ],
)
def test_settings_are_refused_in_a_sentence(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        vpeft.Optimisation(**wrong)
    with pytest.raises(BadSettings, match="BenchConfig has no option"):
        vpeft.BenchConfig(nothing=1)  # type: ignore[call-arg]
    with pytest.raises(BadSettings, match="source is missing"):
        vpeft.DataConfig()  # type: ignore[call-arg]


def test_kinds() -> None:
    for kind, right, wrong in (
        (PATH, ["a", Path("a")], ["", "a\0", b"a", 3, None]),
        (TEXT, ["", "a"], [b"a", None, 3]),
        (TEXTS, [[], ["a"], ("a",), {"a"}], ["a", [3], None]),
        (IN_ORDER, [["a"], ("a",), np.array(["a"])], [{"a"}, {"a": 1}, "a"]),
        (WHOLE, [0, -1, np.int64(3)], [True, 1.0, "1", None]),
        (COUNT, [0, 3], [-1, False]),
        (SAMPLES, [SET, [], ()], [{}, "a", None, list, DataLoader(SET)]),
        (list_of(int, says="numbers"), [[], [1], (1, 2)], [["a"], 1, {1}]),
        (one_of(int, says="a number").or_none(), [1, None], ["a"]),
    ):
        for value in right:
            require("f(x)", x=(value, kind))
        for value in wrong:
            with pytest.raises(WrongArgument, match=r"^f\(x\): `x` must be "):
                require("f(x)", x=(value, kind))
