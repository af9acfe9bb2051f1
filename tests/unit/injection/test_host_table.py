"""The table host x method: whole models of transformers and torchvision, each trained by its own loss for ten steps.

A cell attaches a method to the tower and trains the decoder or heads in full; its loss falls, it is saved and reloaded
bit-equal, and detached exactly. Another row puts the method on a part of the host. Two hosts are fast, the others slow.
A refusal is a result: it is in `REFUSED` with a part of its sentence.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.host_models import HOSTS, TinyHost, flat
from vpeft.methods import AdaptFormer, BitFit, LinearProbe, LoRA

pytest.importorskip("transformers")

OF_TOWERS = ("blocks.", "stages.", "patch", "embedding", "norm")  # beginnings of the names of a tower's places
FAST = ("detr", "segformer")
METHODS: dict[str, vpeft.Method] = {
    "lora": LoRA(rank=2),
    "adaptformer": AdaptFormer(bottleneck=4, dropout=0.0),
    "bitfit": BitFit(),
    "frozen": LinearProbe(),
}
# FrozenBatchNorm has no parameters, and the convolutions beside it have no biases.
NO_BIASES = ("detr", "rt_detr_v2", "d_fine", "faster_rcnn", "mask_rcnn", "retinanet", "fcos")
REFUSED = {(host, "bitfit"): "BitFit changes nothing on" for host in NO_BIASES}
# A part without repeating layers has no blocks, in which adapters are put.
WITHOUT_BLOCKS = (
    "eomt",
    "eomt_dinov3",
    "upernet",
    "segformer",
    "dpt",
    "faster_rcnn",
    "mask_rcnn",
    "retinanet",
    "fcos",
    "deeplabv3",
    "lraspp",
)
PART_REFUSED = {(host, "adaptformer"): "has no residual blocks" for host in WITHOUT_BLOCKS}


def cells(names: tuple[str, ...]) -> list[Any]:
    """Every host with every one of the methods; hosts that take long are marked slow."""
    return [
        pytest.param(host, method, id=f"{host} {method}", marks=() if host in FAST else pytest.mark.slow)
        for host in HOSTS
        for method in names
    ]


def same(one: Any, other: Any) -> bool:
    """Whether two outputs hold the same bits."""
    pairs = list(zip(flat(one), flat(other), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def near(one: Any, other: Any) -> bool:
    """Whether two outputs are equal but for their last bits; torch takes other kernels where parameters train."""
    pairs = list(zip(flat(one), flat(other), strict=True))
    return bool(pairs) and all(torch.allclose(a.float(), b.float(), atol=1e-4) for a, b in pairs)


def hooks(model: nn.Module) -> int:
    """How many hooks there are on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def ten_steps(tuned: Any, host: TinyHost, lr: float) -> list[float]:
    """Losses of ten steps on one batch, each under the same random numbers."""
    tuned.train()
    optimiser = torch.optim.AdamW([p for _, p in tuned.trainable()], lr=lr)
    losses = []
    for _ in range(10):
        torch.manual_seed(0)
        loss = host.loss(tuned)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    return losses


def lives(host: TinyHost, methods: Any, train: tuple[str, ...], lr: float, folder: Path, moves: tuple[str, ...]) -> Any:
    """Attach, train, save, reload and detach; returns the tuned model as it was after training.

    `moves`: the beginning of the names of tensors of which one at least must have moved.
    """
    model = host.make()
    fresh = copy.deepcopy(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        plain = host.outputs(model)
    # counted behind the first pass, in which transformers puts hooks of its own
    classes, hooked = [type(module) for module in model.modules()], hooks(model)
    tuned = vpeft.tune(model, methods, train=train)
    assert tuned.backbone is model and tuned.description.host is model
    start = {key: value.clone() for key, value in tuned.adapter_state().items()}
    with torch.no_grad():
        assert near(host.outputs(tuned.eval()), plain)
    losses = ten_steps(tuned, host, lr)
    assert sum(losses[-3:]) / 3 < losses[0], losses
    moved = [key for key, value in tuned.adapter_state().items() if not torch.equal(value, start[key])]
    assert any(key.startswith(moves) for key in moved), moved[:5]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    with torch.no_grad():
        learnt = host.outputs(tuned.eval())
    path = tuned.save(folder / "host.safetensors")
    again = vpeft.load(fresh, path).eval()
    with torch.no_grad():
        assert same(host.outputs(again), learnt)
    assert again.methods() == tuned.methods() and str(again.plan()) == str(tuned.plan())
    assert tuned.detach() is model
    after: dict[str, Tensor] = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert [type(module) for module in model.modules()] == classes and hooks(model) == hooked
    with torch.no_grad():
        assert same(host.outputs(model.eval()), plain)
    return tuned


def test_every_host_that_is_promised_has_its_rows() -> None:
    of_transformers = "detr rt_detr_v2 d_fine rf_detr mask2former eomt eomt_dinov3 upernet segformer dpt sam sam2"
    of_torchvision = "faster_rcnn mask_rcnn retinanet fcos deeplabv3 lraspp"
    assert set(HOSTS) >= {*of_transformers.split(), *of_torchvision.split()}
    assert {case.values[0] for case in cells(("lora",))} == set(HOSTS)


@pytest.mark.parametrize(("name", "method"), cells(tuple(METHODS)))
def test_a_method_on_the_tower_and_a_trained_decoder(name: str, method: str, tmp_path: Path) -> None:
    host = HOSTS[name]
    if (name, method) in REFUSED:
        with pytest.raises(vpeft.VpeftError, match=REFUSED[name, method]):
            vpeft.tune(host.make(), METHODS[method], train=host.decoder)
        return
    lives(host, METHODS[method], host.decoder, host.lr, tmp_path, ("",) if method == "frozen" else OF_TOWERS)


@pytest.mark.parametrize(("name", "method"), cells(("lora", "adaptformer", "bitfit")))
def test_a_method_on_a_part_of_the_host(name: str, method: str, tmp_path: Path) -> None:
    host = HOSTS[name]
    if (name, method) in PART_REFUSED:
        with pytest.raises(vpeft.VpeftError, match=PART_REFUSED[name, method]):
            vpeft.tune(host.make(), {host.tuned_part: METHODS[method]})
        return
    part = host.tuned_part
    moves = f"model.{part}" if part == "head" else part
    lives(host, {part: METHODS[method]}, (), 10 * host.lr, tmp_path, (moves,))


def test_a_tower_and_a_part_take_methods_of_their_own(tmp_path: Path) -> None:
    host = HOSTS["detr"]
    methods = {"image": LoRA(rank=2), "decoder": [AdaptFormer(bottleneck=4), LoRA(rank=2, targets=("all",))]}
    lives(host, methods, ("class_labels_classifier",), host.lr, tmp_path, ("model.decoder.layers.0",))
    made = vpeft.tune(host.make(), methods)
    assert [one.tower for one in made.placed()] == ["", "model.decoder", "model.decoder"]
    places = [row.place for row in made.plan().rows]
    assert any(place.startswith("blocks.") for place in places)
    assert any(place.startswith("model.decoder.layers.0") for place in places)
    manifest = vpeft.read_manifest(made.save(tmp_path / "b.safetensors"))
    assert [entry.tower for entry in manifest.methods] == ["", "model.decoder", "model.decoder"]


def test_merged_weights_of_a_part_give_the_same() -> None:
    host = HOSTS["detr"]
    tuned = vpeft.tune(host.make(), {"decoder": LoRA(rank=2, targets=("all",))}).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.02 * torch.randn_like(parameter))
        given = host.outputs(tuned)
        assert not near(given, host.outputs(host.make()))
        assert near(host.outputs(tuned.merge()), given)


def test_on_names_the_part_that_the_methods_act_on() -> None:
    host = HOSTS["detr"]
    methods = [AdaptFormer(bottleneck=4), LoRA(rank=2, targets=("all",))]
    short = vpeft.tune(host.make(), *methods, on="decoder", train=("class_labels_classifier",))
    long = vpeft.tune(host.make(), {"decoder": methods}, train=("class_labels_classifier",))
    assert short.placed() == long.placed()
    assert short.plan().rows == long.plan().rows
    assert {name for name, _ in short.trainable()} == {name for name, _ in long.trainable()}
    with pytest.raises(vpeft.VpeftError, match=r"on='decoder' places every method, and a mapping.*: image\."):
        vpeft.tune(host.make(), {"image": LoRA()}, on="decoder")
    with pytest.raises(vpeft.VpeftError, match=r"has no tower 'decodr'.*Did you mean"):
        vpeft.tune(host.make(), LoRA(), on="decodr")
    with pytest.raises(vpeft.VpeftError, match="has one tower"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), LoRA(), on="image")


def test_what_names_a_part_wrongly_is_refused_with_a_sentence() -> None:
    detr, segformer = HOSTS["detr"].make(), HOSTS["segformer"].make()
    with pytest.raises(vpeft.VpeftError, match=r"has no tower 'decodr'.*has no module 'decodr'. Did you mean"):
        vpeft.tune(detr, {"decodr": LoRA()})
    with pytest.raises(vpeft.VpeftError, match=r"several modules 'self_attn': model.*Give the whole name"):
        vpeft.tune(detr, {"self_attn": LoRA()})
    with pytest.raises(vpeft.VpeftError, match="shares layers with the tower"):
        vpeft.tune(detr, {"model.backbone": LoRA()})
    with pytest.raises(vpeft.VpeftError, match="no linear, convolution or norm to act on"):
        vpeft.tune(detr, {"query_position_embeddings": LoRA()})
    with pytest.raises(vpeft.VpeftError, match="has no residual blocks"):
        vpeft.tune(segformer, {"decode_head": AdaptFormer()})
    with pytest.raises(vpeft.MissingPlace, match="has no place 'patch'"):
        vpeft.tune(detr, {"decoder": vpeft.methods.VPTDeep(tokens=2)})
    assert hooks(detr) == hooks(HOSTS["detr"].make())


def test_a_method_that_changes_nothing_is_refused_beside_a_trained_decoder() -> None:
    host = HOSTS["rt_detr_v2"]
    with pytest.raises(vpeft.VpeftError, match="BitFit changes nothing on RTDetrResNetBackbone"):
        vpeft.tune(host.make(), BitFit(), train=host.decoder)


def test_a_layer_that_the_host_never_runs_is_refused_in_training() -> None:
    host = HOSTS["dpt"]  # the library makes a residual layer for its first fusion and does not run it
    tuned = vpeft.tune(host.make(), {"neck": LoRA(rank=2)})
    with torch.no_grad():
        host.outputs(tuned.eval())  # what runs in training only is not known here
    with pytest.raises(vpeft.DeadPlace, match=r"neck\.fusion_stage\.layers\.0\.residual_layer1"):
        host.loss(tuned.train())


def test_parts_that_train_are_named_by_their_end() -> None:
    tuned = vpeft.tune(HOSTS["detr"].make(), LoRA(rank=2), train=("decoder", "bbox_predictor"))
    assert tuned.adapter().train_too == ("model.decoder", "bbox_predictor")
    with pytest.raises(vpeft.MissingPlace, match="several modules 'layers'"):
        vpeft.tune(HOSTS["detr"].make(), LoRA(rank=2), train=("layers",))
