"""What is special of transformers' models: attention kernels, branches that share a module, bias and tokens, twins."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import images_for, tiny_vit
from tests.unit.backbones.store_place_names import stored_names
from vpeft.backbones.places import Norm
from vpeft.injection.carry_out import carry_out
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import get_method
from vpeft.methods import LoRA

pytest.importorskip("transformers")

from tests.families import transformers_models as models

KERNELS: dict[str, Callable[..., nn.Module]] = {
    "vit": models.vit,
    "beit": models.beit,
    "dinov3": models.dinov3,
    "siglip2": models.siglip2,
    "videomae": models.videomae,
    "swin": models.swin,
    "segformer": models.segformer,
}


def _trained(model: nn.Module, *methods: Any) -> TunedModel:
    """A tuned model whose adapter is moved off its start, the same for equal shapes."""
    tuned = vpeft.tune(model, *methods, num_classes=3, verify=False, show=False).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(tuned.trainable(), key=lambda entry: entry[0]):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return tuned


@pytest.mark.parametrize("name", KERNELS)
def test_edits_of_the_core_are_the_same_on_both_attention_kernels(name: str) -> None:
    features = []
    for kernel in ("eager", "sdpa"):
        torch.manual_seed(0)
        model: Any = KERNELS[name]()
        model.set_attn_implementation(kernel)
        tuned = _trained(model, get_method("prefix_tuning")(length=2))
        features.append(tuned.features(images_for(model)))
        with tuned.disable():
            plain = tuned.features(images_for(model))
        assert not torch.allclose(features[-1], plain, atol=1e-3), "the prefix does nothing"
    assert torch.allclose(features[0], features[1], atol=1e-5)


def test_a_kernel_that_shows_no_keys_is_refused_with_a_sentence() -> None:
    model: Any = models.siglip()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(vpeft.VpeftError, match=r"runs the attention 'flex_attention'.*eager, sdpa.*set_attn_impl"):
        _trained(model, get_method("prefix_tuning")(length=2)).features(images_for(model))


class Doubled(nn.Module):
    """x -> 2 x."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: models.dinov2(drop_path_rate=0.5), id="shared drop path"),
        pytest.param(lambda: models.vit(hidden_dropout_prob=0.5), id="shared dropout"),
        pytest.param(models.beit, id="scale that is no module"),
        pytest.param(models.videomae, id="residual inside a half"),
        pytest.param(models.swin, id="swin"),
    ],
)
def test_a_branch_ends_at_its_own_call_of_what_two_branches_share(model: Callable[[], nn.Module]) -> None:
    """The stream after the MLP, doubled, is twice what the block gives; in training, where modules drop."""
    backbone = vpeft.describe(model())
    block, images = backbone.blocks[0], images_for(backbone.module)
    seen: list[Tensor] = []
    assert block.exit is not None
    block.exit.module.register_forward_hook(
        lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple) else out).detach())
    )
    tuned = TunedModel(backbone).train()
    torch.manual_seed(5)
    tuned.features(images)
    carry_out(block.stream2.after(Doubled()), "x", tuned._wiring)
    tuned._wiring.switch.on = "x"
    torch.manual_seed(5)
    tuned.features(images)
    assert torch.allclose(seen[1], 2 * seen[0], atol=1e-5)
    tuned._wiring.remove("x")
    carry_out(block.stream1.after(Doubled()), "x", tuned._wiring)
    torch.manual_seed(5)
    tuned.features(images)
    assert not torch.allclose(seen[2], 2 * seen[0], atol=1e-2)
    assert not torch.allclose(seen[2], seen[0], atol=1e-2)


def test_prompts_in_beit_have_no_relative_position() -> None:
    """One layer by hand: bias 0 where a prompt asks or is asked, and nothing else moves."""
    model: Any = models.beit(num_hidden_layers=1)
    images = images_for(model)
    tuned = _trained(model, get_method("vpt_deep")(tokens=3))
    prompts = next(p for key, p in tuned.trainable() if not key.startswith("head.")).detach().reshape(1, 3, -1)
    with tuned.disable():
        x = model.embeddings(images)
    layer, attention = model.layers[0], model.layers[0].attention
    x = torch.cat([x[:, :1], prompts.expand(2, -1, -1), x[:, 1:]], dim=1)
    bias = layer.relative_position_bias((4, 4), False, 17)
    known = [0, *range(4, 20)]
    whole = torch.zeros(1, 2, 20, 20)
    whole[:, :, torch.tensor(known)[:, None], torch.tensor(known)] = bias
    h = layer.layernorm_before(x)
    q, k, v = (
        f(h).reshape(2, 20, 2, 12).transpose(1, 2) for f in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = (q @ k.transpose(-2, -1) * 12**-0.5 + whole).softmax(-1) @ v
    x = x + layer.lambda_1 * attention.o_proj(mixed.transpose(1, 2).reshape(2, 20, 24))
    x = x + layer.lambda_2 * layer.mlp(layer.layernorm_after(x))
    patches = x[:, 4:]
    wanted = [model.pooler.layernorm(rows.mean(1)) for rows in (patches, x[:, 1:])]
    found = tuned.features(images)
    assert min(float((found - one).abs().max().detach()) for one in wanted) < 1e-5


@pytest.mark.parametrize("name", ["prefix_tuning", "vpt_deep"])
@pytest.mark.parametrize("make", [models.beit, models.swin, models.swinv2], ids=["beit", "swin", "swinv2"])
def test_classes_made_at_run_time_are_copied_and_pickled(make: Callable[[], nn.Module], name: str) -> None:
    tuned = _trained(make(), get_method(name)())
    images = images_for(tuned.backbone)
    for twin in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert torch.equal(twin(images), tuned(images))


def timm_to_transformers(vit: nn.Module) -> nn.Module:
    """The weights of a timm ViT in transformers' ViT: the fused qkv is cut in three."""
    names = {"attn.proj": "attention.o_proj", "norm1": "layernorm_before", "norm2": "layernorm_after"}
    more = {"num_hidden_layers": 3, "num_attention_heads": 3, "hidden_size": 48, "intermediate_size": 192}
    model: Any = models.vit(**more, layer_norm_eps=1e-6)
    state = {key: value for key, value in model.state_dict().items() if key.startswith("pooler.")}
    for key, value in vit.state_dict().items():
        if key.startswith("blocks."):
            _, index, rest = key.split(".", 2)
            inner, _, leaf = rest.rpartition(".")
            if inner == "attn.qkv":
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    state[f"layers.{index}.attention.{letter}_proj.{leaf}"] = part
            else:
                state[f"layers.{index}.{names.get(inner, inner)}.{leaf}"] = value
        else:
            known = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
            key = known.get(key, key).replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
            state[key.replace("norm.", "layernorm.") if key.startswith("norm.") else key] = value
    model.load_state_dict(state)
    return model.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["lora", "adaptformer", "vpt_deep", "prefix_tuning", "ln_tune", "convpass"])
def test_an_adapter_of_timms_vit_gives_the_same_on_the_twin_of_transformers(method: str) -> None:
    vit = tiny_vit()
    twin, images = copy.deepcopy(vit), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    source = _trained(vit, get_method(method)())
    with source.disable():
        plain = source.features(images)
    target = vpeft.tune(
        timm_to_transformers(twin), get_method(method)(), num_classes=3, verify=False, show=False
    ).eval()
    with target.disable():
        assert torch.allclose(target.features(images), plain, atol=1e-5)
    target.load_adapter_state(source.adapter_state())
    assert torch.allclose(target(images), source(images), atol=1e-5)
    assert not torch.allclose(source.features(images), plain, atol=1e-3)


def test_lora_merges_into_the_three_projections() -> None:
    fresh: Any = models.dinov3()
    tuned = _trained(copy.deepcopy(fresh), LoRA(rank=2, targets=("q", "k", "v", "proj", "fc1", "fc2")))
    images = images_for(tuned.backbone)
    before = tuned(images)
    tuned.merge()
    assert torch.allclose(tuned(images), before, atol=1e-5)
    merged: Any = tuned.backbone
    weight, lora = merged.model.layer[0].attention.q_proj.weight, dict(tuned.trainable())
    delta = lora["blocks.0.attn.q.parallel.B"] @ lora["blocks.0.attn.q.parallel.A"]
    assert torch.allclose(weight, fresh.model.layer[0].attention.q_proj.weight + delta, atol=1e-6)


@pytest.mark.parametrize("name", models.ALIKE)
def test_models_of_a_known_structure_are_described_as_well(name: str) -> None:
    """The library's features, a place for every parameter that they use, stored names, and edits that are alive."""
    model = models.ALIKE[name]()
    backbone, images = vpeft.describe(model), images_for(model)
    assert torch.equal(backbone.pooled(images), models.features(model, images))
    owned = [id(m._parameters[a]) for place in backbone.whole.walk() for m, a in place.own.values()]
    apart = {id(p) for p in (*backbone.unused, *backbone.classifier.parameters())}
    assert len(owned) == len(set(owned))
    assert set(owned) | apart == {id(p) for p in model.parameters()}
    assert [place.name for place in backbone.places()] == stored_names()[name]
    # BLIP runs its last norm twice, so that nothing can be put behind it
    behind = all("after" in place.verbs for place in backbone.places() if isinstance(place, Norm))
    second = get_method("ssf" if behind else "bitfit")()
    vpeft.tune(model, LoRA(rank=2, targets=("fc1", "fc2")), second, num_classes=3, show=False)


@pytest.mark.parametrize(("name", "why"), [("segformer", "convolution over the grid"), ("hiera", "mask units")])
def test_prompts_are_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(vpeft.MissingPlace, match=f"cannot insert_tokens: .*{why}"):
        vpeft.tune(getattr(models, name)(), get_method("vpt_deep")(), verify=False, show=False)
