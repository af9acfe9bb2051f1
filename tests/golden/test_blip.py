"""PETAL (Aurora) and UniAdapter on both encoders of a BLIP: restated in plain tensors, and counted at its real size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.two_towers import require_equal
from vpeft.method import BadField
from vpeft.methods import PETAL, LoRA, Method, UniAdapter

BOTH = "image+text_encoder"
CROSS = ("attn.q", "attn.k", "attn.v", "cross.q", "cross.k", "cross.v")
Change = Callable[[Tensor, Tensor], Tensor]


def blip(width_in: int = 32) -> nn.Module:
    """transformers' BLIP for image-text matching, tiny: two blocks in each encoder, a width of 32 in the text's."""
    import transformers

    text = transformers.BlipTextConfig(
        vocab_size=40,
        hidden_size=32,
        encoder_hidden_size=width_in,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=38,
        eos_token_id=39,
        sep_token_id=39,
        pad_token_id=0,
    )
    vision = transformers.BlipVisionConfig(
        hidden_size=width_in,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = transformers.BlipForImageTextRetrieval(
        transformers.BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_text_hidden_size=16)
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(1, 38, (2, 7), generator=generator),
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
    }


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.unflatten(-1, (4, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def norm(layer: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), layer.weight, layer.bias, layer.eps)


def matching(
    model: Any, changes: Mapping[str, Change], ends: Mapping[str, Callable[..., Tensor]] | None = None
) -> Tensor:
    """The matching scores (B, 2). `changes`: place -> (what it gives, what it was given) -> what goes on; `ends`: text
    layer -> (what it gives, behind self-attention, behind cross-attention) -> what goes on."""

    def at(name: str, out: Tensor, came: Tensor) -> Tensor:
        return changes[name](out, came) if name in changes else out

    given = inputs()
    v = model.vision_model
    patch = v.embeddings.patch_embedding
    x = F.conv2d(given["pixel_values"], patch.weight, patch.bias, stride=patch.stride).flatten(2).transpose(1, 2)
    x = torch.cat([v.embeddings.class_embedding.expand(len(x), -1, -1), x], 1) + v.embeddings.position_embedding
    for number, layer in enumerate(v.encoder.layers):
        name = f"blocks.{number}"
        z = norm(layer.layer_norm1, x)
        parts = linear(layer.self_attn.qkv, z).chunk(3, -1)
        mixed = attend(*(at(f"{name}.attn.{letter}", part, z) for letter, part in zip("qkv", parts, strict=True)))
        x = x + at(f"{name}.attn.proj", linear(layer.self_attn.projection, mixed), mixed)
        z = norm(layer.layer_norm2, x)
        hidden = F.gelu(at(f"{name}.mlp.fc1", linear(layer.mlp.fc1, z), z))
        x = x + at(f"{name}.mlp_branch", at(f"{name}.mlp.fc2", linear(layer.mlp.fc2, hidden), hidden), x)
    image = norm(v.post_layernorm, x)
    t = model.text_encoder
    ids = given["input_ids"]
    x = t.embeddings.word_embeddings.weight[ids] + t.embeddings.position_embeddings.weight[: ids.shape[1]]
    x = norm(t.embeddings.LayerNorm, x)
    for number, layer in enumerate(t.encoder.layer):
        name, behind = f"text_encoder.encoder.layer.{number}", []
        for kind, module in (("attn", layer.attention), ("cross", layer.crossattention)):
            source, own = (x if kind == "attn" else image), module.self
            three = ((own.query, x, "q"), (own.key, source, "k"), (own.value, source, "v"))
            mixed = attend(*(at(f"{name}.{kind}.{key}", linear(one, came), came) for one, came, key in three))
            x = norm(module.output.LayerNorm, linear(module.output.dense, mixed) + x)
            behind.append(x)
        hidden = F.gelu(linear(layer.intermediate.dense, x))
        x = norm(layer.output.LayerNorm, linear(layer.output.dense, hidden) + x)
        if ends:
            x = ends[name](x, *behind)
    return linear(model.itm_head, x[:, 0])


def tuned_with(method: Method, where: str = BOTH, width_in: int = 32) -> vpeft.TunedModel:
    torch.manual_seed(3)
    tuned = vpeft.tune(blip(width_in), {where: method}, show=False).eval()
    randomise(tuned, 0.3)
    return tuned


@pytest.mark.parametrize("core", ["cp", "tucker"])
def test_petal_equals_a_restatement(core: Any) -> None:
    tuned = tuned_with(PETAL(core=core, rank=3, scale=0.5, query_transformation=True))
    t = dict(tuned.trainable())
    first = "blocks.0.attn.q.parallel.factors."
    bank = {name.removeprefix(first): value for name, value in t.items() if name.startswith(first)}
    texts = t["text_encoder.encoder.layer.0.attn.q.parallel.factors.P"]
    assert bank["P"].shape == (3, 2 * 8) and texts.shape == (3, 2 * 6)  # fc1 and fc2 are twice as wide as the stream

    def matrix(columns: Tensor) -> list[Tensor]:
        """S (r, r) of each column, used as (U x) S."""
        if core == "cp":
            return [torch.diag(bank["weight"] * column) for column in columns.T]
        parts = torch.einsum("abc,cj->abj", bank["C"], columns).reshape(3, -1)
        return list(parts.split(3, dim=1))

    def beside(columns: Tensor, into: bool = False) -> Change:
        U, V = bank["U"], bank["V"]

        def change(out: Tensor, came: Tensor) -> Tensor:
            if into:
                pieces = zip(came.split(32, dim=-1), matrix(columns), strict=True)
                turned = ((x, part.T if core == "tucker" else part) for x, part in pieces)
                return out + 0.5 * sum(x @ U.T @ part @ V.T for x, part in turned)
            return out + 0.5 * torch.cat([came @ U.T @ part @ V.T for part in matrix(columns)], -1)

        return change

    changes: dict[str, Change] = {}
    ends: dict[str, Callable[..., Tensor]] = {}
    for number in range(2):
        own = bank["P"][:, 8 * number : 8 * number + 8]
        for place, (start, stop) in {"q": (0, 1), "k": (1, 2), "v": (2, 3), "proj": (3, 4)}.items():
            changes[f"blocks.{number}.attn.{place}"] = beside(own[:, start:stop])
        changes[f"blocks.{number}.mlp.fc1"] = beside(own[:, 4:6])
        changes[f"blocks.{number}.mlp.fc2"] = beside(own[:, 6:8], into=True)
        name = f"text_encoder.encoder.layer.{number}"
        for column, place in enumerate(CROSS, start=6 * number):
            changes[f"{name}.{place}"] = beside(texts[:, column : column + 1])
        scales, shifts = t[f"{name}.after.scales"], t[f"{name}.after.shifts"]

        def end(out: Tensor, own: Tensor, crossed: Tensor, scales: Tensor = scales, shifts: Tensor = shifts) -> Tensor:
            return out + 0.1 * (own * scales[0] + shifts[0]) + 0.1 * (crossed * scales[1] + shifts[1])

        ends[name] = end
    require_equal(tuned, matching(blip(), changes, ends), tuned(**inputs()).itm_score)


def test_keys_of_images_of_another_width_have_a_second_bank() -> None:
    tuned = tuned_with(PETAL(rank=3), "text_encoder", width_in=48)
    t = dict(tuned.trainable())
    name = "text_encoder.encoder.layer.0"
    first, second = (f"{name}.{place}.parallel.factors" for place in ("attn.q", "cross.k"))
    assert t[f"{first}.U"].shape == (3, 32) and t[f"{first}.P"].shape == (3, 2 * 4)
    assert (
        t[f"{second}.U"].shape == (3, 48) and t[f"{second}.V"].shape == (32, 3) and t[f"{second}.P"].shape == (3, 2 * 2)
    )
    changes: dict[str, Change] = {}
    for prefix, places in ((first, ("attn.q", "attn.k", "attn.v", "cross.q")), (second, ("cross.k", "cross.v"))):
        columns = iter(t[f"{prefix}.P"].T)
        for number in range(2):
            for place in places:
                core = torch.diag(t[f"{prefix}.weight"] * next(columns))

                def change(out: Tensor, came: Tensor, core: Tensor = core, prefix: str = prefix) -> Tensor:
                    return out + came @ t[f"{prefix}.U"].T @ core @ t[f"{prefix}.V"].T

                changes[f"text_encoder.encoder.layer.{number}.{place}"] = change
    found = tuned(**inputs()).itm_score
    require_equal(tuned, matching(blip(48), changes), found)
    assert torch.allclose(tuned.merge()(**inputs()).itm_score, found, atol=1e-4)


def test_uni_adapter_equals_a_restatement() -> None:
    tuned = tuned_with(UniAdapter(bottleneck=4, scale=0.3))
    t = dict(tuned.trainable())
    changes: dict[str, Change] = {}
    ends: dict[str, Callable[..., Tensor]] = {}
    for number in range(2):
        image, text = f"blocks.{number}.mlp_branch.parallel", f"text_encoder.encoder.layer.{number}.after"
        shared = {key: t[f"{image}.{key}"] for key in ("norm.weight", "norm.bias", "down.weight", "down.bias")}
        assert not any(f"{text}.{key}" in t for key in shared)

        def inner(x: Tensor, s: dict[str, Tensor] = shared) -> Tensor:
            z = F.layer_norm(x, (32,), s["norm.weight"], s["norm.bias"], 1e-5)
            return F.relu(z @ s["down.weight"].T + s["down.bias"])

        def branch(out: Tensor, came: Tensor, image: str = image, inner: Callable[[Tensor], Tensor] = inner) -> Tensor:
            return out + 0.3 * (inner(came) @ t[f"{image}.up.weight"].T + t[f"{image}.up.bias"])

        def end(
            out: Tensor, own: Tensor, crossed: Tensor, text: str = text, inner: Callable[[Tensor], Tensor] = inner
        ) -> Tensor:
            m = inner(crossed) @ t[f"{text}.up.weight"].T + t[f"{text}.up.bias"]
            w = inner(own) @ t[f"{text}.up_text.weight"].T + t[f"{text}.up_text.bias"]
            return out + 0.3 * F.layer_norm(
                m + w, (32,), t[f"{text}.last_norm.weight"], t[f"{text}.last_norm.bias"], 1e-5
            )

        changes[f"blocks.{number}.mlp_branch"] = branch
        ends[f"text_encoder.encoder.layer.{number}"] = end
    require_equal(tuned, matching(blip(), changes, ends), tuned(**inputs()).itm_score)


@pytest.mark.parametrize("method", [PETAL(rank=3, query_transformation=True), UniAdapter(bottleneck=4, scale=0.3)])
def test_a_pass_without_an_image_is_the_papers(method: Method) -> None:
    """Text alone: PETAL's query transformation is left out, and UniAdapter adds its text branch."""
    tuned, ids = tuned_with(method), inputs()["input_ids"]
    with torch.no_grad():
        tuned(**inputs())  # nothing of a pass with the image is left for one without
        found = tuned.backbone.text_encoder(input_ids=ids).last_hidden_state  # type: ignore[operator,union-attr]
    t, encoder = dict(tuned.trainable()), blip().text_encoder
    x = encoder.embeddings(input_ids=ids)  # type: ignore[operator,union-attr]
    for number, layer in enumerate(encoder.encoder.layer):  # type: ignore[union-attr,arg-type]
        name, one, own = f"text_encoder.encoder.layer.{number}", layer.attention, layer.attention.self
        three = []
        for column, part in enumerate((own.query, own.key, own.value), start=6 * number):
            out = linear(part, x)
            if isinstance(method, PETAL):
                bank = {key: t[f"blocks.0.attn.q.parallel.factors.{key}"] for key in ("U", "V", "weight")}
                mixing = t["text_encoder.encoder.layer.0.attn.q.parallel.factors.P"][:, column]
                out = out + x @ bank["U"].T @ torch.diag(bank["weight"] * mixing) @ bank["V"].T
            three.append(out)
        a = norm(one.output.LayerNorm, linear(one.output.dense, attend(*three)) + x)
        x = norm(layer.output.LayerNorm, linear(layer.output.dense, F.gelu(linear(layer.intermediate.dense, a))) + a)
        if isinstance(method, UniAdapter):
            half = f"blocks.{number}.mlp_branch.parallel"
            z = F.layer_norm(a, (32,), t[f"{half}.norm.weight"], t[f"{half}.norm.bias"], 1e-5)
            z = F.relu(z @ t[f"{half}.down.weight"].T + t[f"{half}.down.bias"])
            x = x + 0.3 * (z @ t[f"{name}.after.up_text.weight"].T + t[f"{name}.after.up_text.bias"])
    assert torch.allclose(found, x, atol=1e-5)


def counted(methods: Mapping[str, Method]) -> int:
    """Trained parameters on BLIP-base, without its tensors."""
    import transformers

    text = transformers.BlipTextConfig(num_attention_heads=12)
    vision = transformers.BlipVisionConfig(image_size=384)
    with torch.device("meta"):
        model = transformers.BlipForImageTextRetrieval(
            transformers.BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
        )
        return vpeft.tune(model, methods, verify=False, show=False).plan().trainable


def test_counts_on_blip_base() -> None:
    shared, image, text = 98_304 + 262_144, 12 * 64 * 12, 12 * 6 * 64
    assert counted({BOTH: PETAL(core="tucker", query_transformation=True)}) == shared + image + text + 36_864 == 411_136
    assert counted({BOTH: PETAL()}) == 98_304 + 64 + image + text  # the paper's form: about 0.1 M
    assert counted({BOTH: UniAdapter(bottleneck=512)}) == 12 * 1_578_752


@pytest.mark.parametrize("method", [PETAL(rank=3, query_transformation=True), UniAdapter(bottleneck=4), LoRA(rank=2)])
def test_both_encoders_learn_are_saved_and_let_go(method: Method, tmp_path: Path) -> None:
    where: dict[str, Any] = {"image": method, "text_encoder": method} if method.name == "lora" else {BOTH: method}
    model = blip()
    with torch.no_grad():
        plain = model(**inputs()).itm_score
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tuned = vpeft.tune(model, where, train=("itm_head",)).train()
    optimiser = torch.optim.AdamW([parameter for _, parameter in tuned.trainable()], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(tuned(**inputs()).itm_score, torch.tensor([0, 1]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        learnt = tuned.eval()(**inputs()).itm_score
        again = vpeft.load(blip(), tuned.save(tmp_path / "blip.safetensors")).eval()
        assert torch.equal(again(**inputs()).itm_score, learnt)
        assert again.placed() == tuned.placed()
        assert tuned.detach() is model
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert torch.equal(model(**inputs()).itm_score, plain)


def test_what_does_not_go_is_said() -> None:
    with pytest.raises(vpeft.MissingPlace, match="no.* cross-attention|has none"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), PETAL(query_transformation=True), num_classes=2)
    with pytest.raises(vpeft.MissingPlace, match="words of a text tower"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), PETAL(experts=2), num_classes=2)
    with pytest.raises(BadField, match="need one width"):
        vpeft.tune(blip(48), {BOTH: UniAdapter()})
    with pytest.raises(vpeft.VpeftError, match="has no tower 'texts'"):
        vpeft.tune(blip(), {"image+texts": PETAL()})
    tuned = vpeft.tune(blip(), {BOTH: PETAL(rank=2)}).train()
    with pytest.raises(vpeft.VpeftError, match="cross"):
        tuned(**inputs(), use_itm_head=False)  # without the image the cross-attentions do not run
