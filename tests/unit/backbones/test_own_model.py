"""A model that no family knows: by an anatomy, or each layer by its name; what does not fit is refused."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import vpeft
from vpeft.backbones.own_model import Anatomy
from vpeft.methods import SSF, AdaptFormer, BitFit, LoRA, VPTDeep

EXAMPLE = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "own_model.py"))
ANATOMY: Anatomy = EXAMPLE["anatomy"]


def own() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = EXAMPLE["MyNet"]()
    return made.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_example_runs_and_is_short(images: torch.Tensor) -> None:
    assert EXAMPLE["tuned"](images).shape == (2, 10)
    source = Path(__file__).parents[3] / "examples" / "own_model.py"
    shown = source.read_text().partition("# [anatomy]\n")[2].partition("# [/anatomy]")[0]
    assert 5 < len(shown.splitlines()) < 30


def test_places_are_canonical_and_the_rest_goes_by_its_name(images: torch.Tensor) -> None:
    model = own()
    backbone = vpeft.describe(model, ANATOMY)
    names = {place.name for place in backbone.places()}
    assert {"patch", "blocks.0.norm1", "blocks.1.attn.q", "blocks.0.attn.proj", "blocks.1.mlp.fc2", "norm"} <= names
    assert torch.equal(backbone.classifier(backbone.pooled(images)), model(images))
    unnamed = vpeft.describe(own(), Anatomy(blocks="layers", mlp="ff", fc2="ff.2", norm2="ln_b", image_size=(32, 32)))
    assert {"cut", "layers.0.to_qkv", "layers.1.ff.0", "classify"} <= {place.name for place in unnamed.places()}
    owned = [id(m._parameters[a]) for place in backbone.whole.walk() for m, a in place.own.values()]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in model.parameters()} - {id(p) for p in backbone.classifier.parameters()}


@pytest.mark.parametrize("anatomy", [ANATOMY, "generic"], ids=["anatomy", "generic"])
def test_save_and_load_merge_and_detach(anatomy: Anatomy | str, images: torch.Tensor, tmp_path: Path) -> None:
    plain = own()(images)
    tuned = vpeft.tune(own(), LoRA(rank=2, targets=("all",)), SSF(), num_classes=4, anatomy=anatomy, show=False)
    before = tuned(images)
    tuned.save(tmp_path / "a.safetensors")
    assert torch.equal(vpeft.load(own(), tmp_path / "a.safetensors")(images), before)
    assert torch.allclose(tuned.merge()(images), before, atol=1e-6)
    assert torch.equal(tuned.detach()(images), plain)


def test_the_generic_description_says_what_it_cannot_offer() -> None:
    tuned = vpeft.tune(own(), BitFit(), anatomy="generic", show=False)
    assert len(tuned.adapter().edits) == len(tuned.description.norms) + len(tuned.description.projections)
    for method in (AdaptFormer(), VPTDeep()):
        with pytest.raises(vpeft.MissingPlace, match=r"no residual blocks.*Anatomy\(blocks="):
            vpeft.tune(own(), method, anatomy="generic", show=False)
    with pytest.raises(vpeft.VpeftError, match=r'anatomy=Anatomy\(blocks.*anatomy="generic"'):
        vpeft.tune(own(), LoRA(), show=False)


def test_prompts_need_to_be_told_that_the_blocks_take_them() -> None:
    silent = ANATOMY.model_copy(update={"joins": False})
    with pytest.raises(vpeft.MissingPlace, match="cannot insert_tokens: the anatomy does not say joins=True"):
        vpeft.tune(own(), VPTDeep(tokens=2), anatomy=silent, show=False)


@pytest.mark.parametrize(
    ("nouns", "said"),
    [
        ({"blocks": "layer"}, "no module 'layer'. Did you mean 'layers'"),
        ({"blocks": "layers"}, "must name one of fc2, proj"),
        ({"blocks": "layers", "norm1": "ln_q"}, "Layer has no module 'ln_q'"),
        ({"block": "layers"}, "Its nouns are: blocks, layout"),
        ({"pool": "avg"}, "nothing left to pool"),
        ({"features": "cut_off"}, "no method 'cut_off'"),
        ({"features": "cut", "pool": "token"}, "one vector for each image"),
    ],
)
def test_what_does_not_fit_is_refused(nouns: dict[str, str], said: str) -> None:
    with pytest.raises(vpeft.VpeftError, match=said):
        vpeft.describe(own(), {**nouns, "image_size": (32, 32)})


def test_a_layer_whose_weight_is_used_without_calling_it_is_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attn = nn.LayerNorm(12), nn.MultiheadAttention(12, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            return x + self.attn(y, y, y, need_weights=False)[0]

    model = nn.Sequential(nn.Conv2d(3, 12, 8, 8), nn.Flatten(2), nn.Sequential(Functional()), nn.Flatten(1))
    model[1] = Turn()
    with pytest.raises(vpeft.VpeftError, match=r"attn\.out_proj.*ran 0 times"):
        vpeft.describe(model, Anatomy(blocks="2", norm1="norm", proj="attn.out_proj", image_size=(16, 16)))
    named = vpeft.describe(model, Anatomy(blocks="2", norm1="norm", image_size=(16, 16)))
    assert "2.0.attn.out_proj" not in {place.name for place in named.places()}


def test_a_layer_called_head_and_a_norm_without_a_scale_are_no_hindrance() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.norm = nn.Conv2d(12, 8, 2, 2), nn.LayerNorm(8, elementwise_affine=False)
            self.head = nn.Sequential(nn.Linear(8, 6))
            self.pretrained_cfg = {"input_size": (3, 16, 16)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            unshuffled = nn.functional.pixel_unshuffle(x, 2)
            return self.head(self.norm(self.cut(unshuffled).flatten(2).mean(2)))  # type: ignore[no-any-return]

    tuned = vpeft.tune(Net(), LoRA(rank=2, targets=("all",)), num_classes=3, anatomy="generic", show=False)
    assert {place.name for place in tuned.description.projections} == {"cut", "model.head.0"}
    assert (tuned.description.facts.image_size, tuned.description.pixels.width) == ((16, 16), 3)
    assert {key.partition(".")[0] for key, _ in tuned.trainable()} == {"cut", "model", "head"}


class Turn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


def test_every_noun_is_documented() -> None:
    assert all(field.description for field in Anatomy.model_fields.values())
    page = (Path(__file__).parents[3] / "docs" / "own_model.md").read_text()
    lacking = [n for n in ("attn_end", "post_norm", "features", "stride", "joins", "layout") if f"{n}" not in page]
    assert not lacking and "anatomy" in inspect.signature(vpeft.tune).parameters
