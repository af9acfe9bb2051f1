"""Methods on the towers of image-text models: each on the image tower, on the text tower and on both.

For each cell: it learns by the names of classes, is saved and reloaded bit by bit, gives a copy that is its own, merges
where its plan says so, and detaching gives the original back. A refusal is declared here, and says why.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vpeft
from tests.golden.clip_by_hand import LENGTH, VOCABULARY, class_ids, hf_model, open_clip_model, pictures
from vpeft.heads.class_names import ClassNames
from vpeft.injection.tuned_model import TunedModel

NAMES = ("a", "b", "c", "d", "e")
LABELS = torch.tensor([0, 3, 4])
METHODS: dict[str, dict[str, Any]] = {
    "adapter": {},
    "adapter_parallel": {},
    "adaptformer": {"bottleneck": 4},
    "arc": {},
    "bitfit": {},
    "boft": {},
    "compacter": {},
    "dora": {"rank": 2},
    "fact_tk": {"rank": 4},
    "fact_tt": {"rank": 4},
    "glora": {},
    "hra": {},
    "ia3": {},
    "krona": {},
    "ln_tune": {},
    "loha": {},
    "lokr": {},
    "lora": {"rank": 2},
    "miss": {},
    "partial_k": {},
    "petal": {"rank": 4},
    "prefix_tuning": {},
    "repadapter": {},
    "rlrr": {},
    "ssf": {},
    "svft": {},
    "uni_adapter": {"bottleneck": 4},
    "vera": {},
    "vl_adapter": {},
    "vpt_deep": {"tokens": 2},
    "vpt_shallow": {"tokens": 2},
}
QUICK = ("lora", "adaptformer", "vpt_deep", "bitfit", "ssf", "petal", "prefix_tuning")
TOWERS = {"image": ("image",), "text": ("text",), "both": ("image", "text")}
# On text towers. Tokens stand between those of a text, and transformers' towers make their mask for its length; RLRR
# acts on the projection of patches too.
REFUSED = {
    (method, library): "cannot insert_tokens: the mask of its attention"
    for method in ("vpt_deep", "vpt_shallow")
    for library in ("clip", "siglip")
} | {("rlrr", library): "has no place 'patch'" for library in ("open_clip", "clip", "siglip")}


def siglip() -> nn.Module:
    """transformers' SigLIP of the same sizes; its towers have one width, as it has no projections."""
    import transformers

    alike = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = transformers.SiglipTextConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        projection_size=32,
        bos_token_id=38,
        eos_token_id=39,
        pad_token_id=0,
        **alike,
    )
    vision = transformers.SiglipVisionConfig(image_size=32, patch_size=8, **alike)
    torch.manual_seed(0)
    model = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-1.0)
    return model.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"open_clip": open_clip_model, "clip": hf_model, "siglip": siglip}


@cache
def _model(library: str) -> nn.Module:
    return MODELS[library]()


def model_of(library: str) -> nn.Module:
    """A model of its own, with the same weights at each call."""
    return copy.deepcopy(_model(library))


def tuned_of(model: nn.Module, method: str, towers: tuple[str, ...]) -> TunedModel:
    """The method on the towers, with a classifier of made-up names."""
    torch.manual_seed(3)
    made = vpeft.methods.get(method)(**METHODS[method])
    return vpeft.tune(model, dict.fromkeys(towers, made), head=ClassNames.of_ids(NAMES, class_ids()), show=False)


def hold(library: str, method: str, towers: tuple[str, ...], folder: Path) -> None:
    """Every promise of one cell."""
    model = model_of(library)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooked = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    with torch.no_grad():
        features = vpeft.describe(model).towers["image"].pooled(pictures())
    tuned = tuned_of(model, method, towers)
    assert {row.place.split(".")[0] for row in tuned.plan().rows} == set(towers)

    def loss() -> torch.Tensor:
        return F.cross_entropy(tuned(pictures()), LABELS)

    first = loss().item()
    optimiser = torch.optim.Adam([parameter for _, parameter in tuned.trainable()], lr=3e-3)
    for _ in range(6):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < first, "does not learn"

    with torch.no_grad():
        learnt = tuned.eval()(pictures())
        again = vpeft.load(model_of(library), tuned.save(folder / "cell.safetensors")).eval()
        assert torch.equal(again(pictures()), learnt) and again.placed() == tuned.placed()
        twin = copy.deepcopy(tuned)
        for _, parameter in twin.trainable():
            parameter.zero_()
        assert torch.equal(tuned(pictures()), learnt), "a copy shares tensors"
        plan = tuned.plan()
        if plan.mergeable:
            merged = again.merge()(pictures())
            assert torch.allclose(merged, learnt, atol=1e-4 * float(learnt.abs().max()), rtol=1e-4)

    back = tuned.detach()
    assert back is model
    state = back.state_dict()
    assert state.keys() == before.keys() and all(torch.equal(state[key], before[key]) for key in before)
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in back.modules()) == hooked
    with torch.no_grad():
        assert torch.equal(vpeft.describe(back).towers["image"].pooled(pictures()), features)


CELLS = [
    pytest.param(library, method, towers, marks=() if method in QUICK and towers == "both" else pytest.mark.slow)
    for library in MODELS
    for method in METHODS
    for towers in TOWERS
]


@pytest.mark.parametrize(("library", "method", "towers"), CELLS)
def test_a_method_holds_on_towers(library: str, method: str, towers: str, tmp_path: Path) -> None:
    if (method, library) in REFUSED and towers != "image":
        with pytest.raises(vpeft.MissingPlace, match=REFUSED[method, library]):
            tuned_of(model_of(library), method, TOWERS[towers])
        return
    hold(library, method, TOWERS[towers], tmp_path)
