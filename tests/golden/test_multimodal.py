"""Multimodal language models of transformers as hosts (Llava, Idefics3, SmolVLM, BLIP-2), adapters on each part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vpeft
from tests.golden.by_hand import randomise
from tests.multimodal_models import IMAGE, KINDS, batch, labelled, multimodal, saved
from vpeft.backbones.create import create_backbone
from vpeft.method import Method
from vpeft.methods import Adapter, BitFit, LoRA, PrefixTuning, VPTDeep, VPTShallow

pytest.importorskip("transformers")

ALL = LoRA(rank=2, targets=("all",))
METHODS = [LoRA(rank=2), Adapter(), PrefixTuning(length=2), VPTDeep(tokens=2), VPTShallow(tokens=2), BitFit()]

# every method on Llava, and one on each other model; the rest is slow
CELLS = [
    pytest.param(
        kind,
        method,
        id=f"{kind}-{method.name}",
        marks=() if kind == "llava" or isinstance(method, VPTDeep) else pytest.mark.slow,
    )
    for kind in KINDS
    for method in METHODS
]


def of_vision(kind: str, method: Method) -> Method:
    """The method itself; BLIP-2's vision tower has no place between q, k and v, so that LoRA stands there."""
    return LoRA(rank=2) if kind == "blip2" and isinstance(method, PrefixTuning) else method


@pytest.mark.parametrize("kind", KINDS)
def test_towers_and_projector_have_names(kind: str) -> None:
    description = vpeft.describe(multimodal(kind))
    assert list(description.towers) == ["vision", "language"]
    assert len(description.towers["language"].blocks) == 2
    # Llava reads the layer before the last, so the last of the three is no place
    assert len(description.towers["vision"].blocks) == (2 if kind == "llava" else 3)
    names = {place.name for place in description.places()}
    assert {"vision.blocks.0.attn.q", "language.blocks.1.mlp.fc2"} <= names
    where = {"blip2": "language_projection", "llava": "model.multi_modal_projector"}.get(kind, "model.connector")
    tuned = vpeft.tune(multimodal(kind), {"vision": LoRA(rank=2), "projector": ALL}, show=False)
    assert {one.tower for one in tuned.placed()} == {"vision", where}
    named = vpeft.tune(multimodal(kind), {"language": LoRA(rank=2)}, train=("projector",), show=False)
    trained = [name for name, _ in named.trainable() if not name.startswith("language.blocks.")]
    assert trained and all(name.startswith(f"{where}.") for name in trained)


@pytest.mark.parametrize(("kind", "method"), CELLS)
def test_generation_with_a_cache_equals_generation_without(kind: str, method: Method) -> None:
    torch.manual_seed(0)
    tuned = vpeft.tune(
        multimodal(kind), {"vision": of_vision(kind, method), "language": method, "projector": ALL}, show=False
    )
    randomise(tuned, 0.2)
    alike: dict[str, Any] = {
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "do_sample": False,
        "suppress_tokens": [IMAGE],  # which would ask for another picture
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    given = batch(kind)
    cached, plain = (tuned.generate(**given, **alike, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    assert all(torch.allclose(one, two, atol=1e-4) for one, two in zip(cached.logits, plain.logits, strict=True))
    with tuned.disable():
        frozen = tuned.generate(**given, **alike)
    assert not torch.allclose(frozen.logits[-1], cached.logits[-1], atol=1e-2)
    # the first step is the model's forward; with padding `generate` counts positions from the first word on
    with torch.no_grad():
        assert torch.allclose(tuned.eval()(**given).logits[1, -1], cached.logits[0][1].float(), atol=1e-4)


@pytest.mark.parametrize(("kind", "method"), CELLS)
def test_learns_is_saved_and_let_go(kind: str, method: Method, tmp_path: Path) -> None:
    model = multimodal(kind)
    given = labelled(kind)
    with torch.no_grad():
        plain = model(**given).logits
    before = {key: value.clone() for key, value in model.state_dict().items()}
    where = {"vision": of_vision(kind, method), "language": method}
    tuned = vpeft.tune(model, where, train=("projector",), show=False).train()
    optimiser = torch.optim.AdamW([parameter for _, parameter in tuned.trainable()], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = tuned(**given).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for _, parameter in tuned.trainable())
    tuned.eval()
    with torch.no_grad():
        learnt = tuned(**given).logits
        again = vpeft.load(multimodal(kind), tuned.save(tmp_path / "host.safetensors")).eval()
        assert torch.equal(again(**given).logits, learnt)
        assert again.placed() == tuned.placed()
        assert tuned.detach() is model
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert torch.equal(model(**given).logits, plain)


@pytest.mark.parametrize("kind", ["llava", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_a_checkpoint_folder_is_loaded(kind: str, tmp_path: Path) -> None:
    folder = saved(kind, tmp_path / kind)
    host = create_backbone(f"host::hf:{folder}")
    assert type(host) is type(multimodal(kind))
    with torch.no_grad():
        assert torch.equal(host(**batch(kind)).logits, multimodal(kind)(**batch(kind)).logits)
    spec = vpeft.describe(host).towers["language"].inputs
    assert spec.ids(["two red circle"]).shape[0] == 1  # type: ignore[attr-defined]


def test_layers_that_llava_reads_tell_which_blocks_are_places() -> None:
    model = multimodal("llava")
    for layers, count in ((-2, 2), (-1, 3), (1, 1), ([-2, 1], 2)):
        model.config.vision_feature_layer = layers
        description = vpeft.describe(model).towers["vision"]
        assert len(description.blocks) == count
        assert not any(f"blocks.{count}." in place.name for place in description.places())
        assert not description.has_norm
    model.config.vision_feature_layer = -2
    everything = vpeft.tune(model, {"vision": vpeft.methods.FullFinetuning()}, show=False).train()
    everything(**labelled("llava")).loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for _, parameter in everything.trainable())


def test_what_does_not_go_is_said() -> None:
    with pytest.raises(vpeft.VpeftError, match="has the towers vision, language; say which"):
        vpeft.tune(multimodal("llava"), LoRA())
    with pytest.raises(vpeft.VpeftError, match="has no tower 'image'"):
        vpeft.tune(multimodal("llava"), {"image": LoRA()})
    with pytest.raises(vpeft.VpeftError, match="several towers, so a head belongs to one"):
        vpeft.tune(multimodal("llava"), {"vision": LoRA()}, num_classes=3)
    tuned = vpeft.tune(multimodal("llava"), {"vision": LoRA(rank=2), "language": LoRA(rank=2)}, show=False).train()
    only_words = {key: value for key, value in batch("llava").items() if key != "pixel_values"}
    only_words["input_ids"] = only_words["input_ids"].clamp(min=5)
    tuned(**only_words)  # a text without a picture is a pass of the language model alone
