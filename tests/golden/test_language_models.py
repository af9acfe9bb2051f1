"""Causal language models of transformers under adapters: prompts, prefixes and the key-value cache.

The restatements call the library's model by hand: prompts as embeddings before those of the text, prefixes as keys and
values that a cache of the library holds from the start.
"""

from __future__ import annotations

import copy
import pickle
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vpeft
from tests.golden.by_hand import randomise
from vpeft.method import Method
from vpeft.methods import Adapter, BitFit, LoRA, PrefixTuning, VPTDeep, VPTShallow

transformers: Any = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
METHODS = [
    LoRA(rank=2),
    Adapter(),
    PrefixTuning(length=3),
    PrefixTuning(length=3, form="mlp", hidden=4),
    VPTDeep(tokens=3),
    VPTShallow(tokens=3),
    BitFit(),
]
MODELS = ("llama", "mistral", "qwen2", "opt")
# every method on Llama, and prompts on the others; the rest is slow
CELLS = [
    pytest.param(
        kind,
        method,
        id=f"{kind}-{method.name}{number}",
        marks=() if kind == "llama" or isinstance(method, VPTDeep) else pytest.mark.slow,
    )
    for kind in MODELS
    for number, method in enumerate(METHODS)
]


def language_model(kind: str = "llama", attention: str = "sdpa") -> Any:
    """A tiny one at random, the same each time; Llama's heads share keys and values."""
    torch.manual_seed(0)
    if kind == "opt":
        made = transformers.OPTForCausalLM(transformers.OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32))
    else:
        stem = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[kind]
        more: dict[str, Any] = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
        config = getattr(transformers, f"{stem}Config")(**SMALL, **more, intermediate_size=48, num_key_value_heads=2)
        made = getattr(transformers, f"{stem}ForCausalLM")(config)
    made.set_attn_implementation(attention)
    return made.eval()


def tuned_with(method: Method, kind: str = "llama", attention: str = "sdpa") -> vpeft.TunedModel:
    if isinstance(method, BitFit) and kind == "mistral":
        pytest.skip("it has no biases")
    torch.manual_seed(3)
    tuned = vpeft.tune(language_model(kind, attention), method, show=False).eval()
    randomise(tuned, 0.3)
    return tuned


def cache_of(model: Any, cache: Any) -> dict[str, Any]:
    """A cache as the argument that this version of transformers has for it."""
    return {"cache" if "cache" in signature(model.forward).parameters else "past_key_values": cache}


def padded() -> tuple[Tensor, Tensor]:
    """Token numbers (2, 6), the second text two tokens shorter and padded on the left, and the mask."""
    ids = torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    return ids, mask


@pytest.mark.parametrize(("kind", "method"), CELLS)
def test_generation_with_a_cache_equals_generation_without(kind: str, method: Method) -> None:
    tuned = tuned_with(method, kind)
    ids, mask = padded()
    alike: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5, "output_logits": True}
    made = [
        tuned.generate(ids, attention_mask=mask, **alike, use_cache=cached, return_dict_in_generate=True)
        for cached in (True, False)
    ]
    assert torch.equal(made[0].sequences, made[1].sequences)
    for one, other in zip(made[0].logits, made[1].logits, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    with tuned.disable():
        plain = tuned.generate(ids, attention_mask=mask, **alike, return_dict_in_generate=True)
    assert not torch.allclose(plain.logits[0], made[0].logits[0], atol=1e-2)


@pytest.mark.parametrize("method", [PrefixTuning(length=3), VPTDeep(tokens=3), VPTShallow(tokens=3)], ids=repr)
def test_eager_attention_gives_the_same(method: Method) -> None:
    ids, mask = padded()
    found = [
        tuned_with(method, attention=kind)(input_ids=ids, attention_mask=mask).logits for kind in ("sdpa", "eager")
    ]
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.allclose(found[0][1, 2:], found[1][1, 2:], atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_prompts_are_embeddings_before_the_text(kind: str) -> None:
    tuned = tuned_with(VPTShallow(tokens=3), kind)
    ids, _ = padded()
    (_, prompts), *_ = tuned.trainable()
    plain = language_model(kind)
    words = plain.get_input_embeddings()(ids)
    if kind == "opt":  # positions are added to the words, not to prompts
        decoder = plain.model.decoder
        hidden = words + decoder.embed_positions(torch.ones_like(ids), 0)
        hidden = torch.cat([prompts.expand(2, -1, -1), hidden], dim=1)
        seen = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
        for layer in decoder.layers:
            hidden = layer(hidden, attention_mask=seen)
        wanted = plain.lm_head(decoder.final_layer_norm(hidden))[:, 3:]
    else:
        wanted = plain(inputs_embeds=torch.cat([prompts.expand(2, -1, -1), words], dim=1)).logits[:, 3:]
    assert torch.allclose(tuned(input_ids=ids).logits, wanted, atol=1e-5)


def test_prompts_of_each_block_equal_a_restatement() -> None:
    tuned, plain = tuned_with(VPTDeep(tokens=3)), language_model()
    ids, _ = padded()
    hidden = plain.model.embed_tokens(ids)
    places = plain.model.rotary_emb(hidden, position_ids=torch.arange(9)[None])
    seen = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    for layer, (_, prompts) in zip(plain.model.layers, tuned.trainable(), strict=True):
        joined = torch.cat([prompts.expand(2, -1, -1), hidden], dim=1)
        hidden = layer(joined, attention_mask=seen, position_embeddings=places)[:, 3:]
    assert torch.allclose(tuned(input_ids=ids).logits, plain.lm_head(plain.model.norm(hidden)), atol=1e-5)


def test_prefixes_are_keys_and_values_that_a_cache_could_hold() -> None:
    tuned, plain = tuned_with(PrefixTuning(length=3)), language_model()
    ids, _ = padded()
    cache = transformers.DynamicCache(config=plain.config)
    named = dict(tuned.trainable())
    assert named["blocks.0.attn.core.extend.keys"].shape == (3, 2 * 8)  # as many heads as the keys have
    for index in range(3):
        rows = [
            named[f"blocks.{index}.attn.core.extend.{one}"].reshape(3, 2, 8).transpose(0, 1)
            for one in ("keys", "values")
        ]
        cache.update(*(one.expand(2, -1, -1, -1) for one in rows), index)
    wanted = plain(input_ids=ids, **cache_of(plain, cache), position_ids=torch.arange(6)[None]).logits
    assert torch.allclose(tuned(input_ids=ids).logits, wanted, atol=1e-5)


def test_hidden_states_are_still_collected() -> None:
    tuned = tuned_with(VPTDeep(tokens=3))
    ids, _ = padded()
    states = tuned(input_ids=ids, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states[1:]] == [(2, 6, 32)] * 3  # the first is what the first block reads


def test_prompts_are_computed_once_and_lie_beside_the_cache() -> None:
    tuned = tuned_with(VPTDeep(tokens=3))
    ids, _ = padded()
    seen: list[int] = []
    layer = tuned.backbone.model.layers[1].mlp  # type: ignore[union-attr,index]
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))  # type: ignore[union-attr]
    made = tuned.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    handle.remove()
    assert seen == [3 + 6, 1, 1, 1]
    cache = made.get("cache", made.get("past_key_values"))
    assert cache.get_seq_length() == 6 + 3 == cache.layers[0].keys.shape[2]


def test_beams_and_a_static_cache_go_with_prompts() -> None:
    ids, mask = padded()
    for method in (VPTShallow(tokens=3), PrefixTuning(length=3)):
        tuned = tuned_with(method)
        alike: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        beams = [tuned.generate(ids, **alike, num_beams=3, use_cache=cached) for cached in (True, False)]
        assert torch.equal(*beams)
        greedy = tuned.generate(ids, **alike)
        assert torch.equal(tuned.generate(ids, **alike, cache_implementation="static", disable_compile=True), greedy)


def test_a_cache_that_was_filled_without_prompts_is_refused() -> None:
    tuned = tuned_with(VPTDeep(tokens=3))
    ids, _ = padded()
    with tuned.disable(), torch.no_grad():
        filled = tuned(input_ids=ids, use_cache=True)
    with pytest.raises(vpeft.VpeftError, match="cache was filled while no prompts"):
        tuned(input_ids=ids[:, :1], **cache_of(tuned.backbone, filled.get("cache", filled.get("past_key_values"))))


@pytest.mark.parametrize("method", METHODS[::2], ids=repr)
def test_learns_is_saved_merged_and_let_go(method: Method, tmp_path: Path) -> None:
    model = language_model()
    ids, mask = padded()
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tuned = vpeft.tune(model, method, show=False).train()
    optimiser = torch.optim.AdamW([parameter for _, parameter in tuned.trainable()], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = tuned(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned.eval()
    with torch.no_grad():
        learnt = tuned(input_ids=ids, attention_mask=mask).logits
        again = vpeft.load(language_model(), tuned.save(tmp_path / "language.safetensors")).eval()
        assert torch.equal(again(input_ids=ids, attention_mask=mask).logits, learnt)
        for twin in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
            assert torch.equal(twin(input_ids=ids, attention_mask=mask).logits, learnt)
        assert tuned.detach() is model
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, plain)


def test_a_model_that_generates_nothing_says_so() -> None:
    tuned = vpeft.tune(vpeft.create_backbone("pocket_vit"), LoRA(), num_classes=2)
    with pytest.raises(vpeft.VpeftError, match="has no `generate`"):
        tuned.generate(torch.zeros(1, 3, 64, 64))


def test_prefixes_in_a_causal_text_tower_see_the_whole_text() -> None:
    """CLIP's text tower leaves its causal mask to the kernel, which knows no further keys."""
    config = transformers.CLIPTextConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        eos_token_id=29,
    )
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(config).eval()
    ids = torch.tensor([[1, 5, 7, 9, 11, 13, 29, 0]])
    found = []
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        torch.manual_seed(1)
        tuned = vpeft.tune(model, PrefixTuning(length=3), show=False).eval()
        randomise(tuned, 0.3)
        found.append(tuned.features(ids).detach())
        model = tuned.detach()
    assert torch.allclose(found[0], found[1], atol=1e-5)
