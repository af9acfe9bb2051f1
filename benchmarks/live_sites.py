"""The same LoRA from vpeft and from Hugging Face peft on models that use a weight without calling its module.

    python benchmarks/live_sites.py              # measures, prints, and writes docs/live_sites.md

Classes of models reduced in width and depth, with random weights. Both libraries put LoRA of rank 4 on the joint
projection to queries, keys and values, in one process; where peft wraps torch's whole attention, it also adapts the
output projection. A site is one pair of factors. It is live if, with its second
factor off zero, both of its tensors receive a gradient other than zero, and a change of that site alone changes what
the model gives. Needs the extras `peft` and `clip`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vpeft
from vpeft.errors import need_extra
from vpeft.methods import LoRA

PAGE = Path(__file__).resolve().parents[1] / "docs" / "live_sites.md"
RANK = 4


@dataclass(frozen=True)
class Subject:
    """One model: how it is made, what peft is told to adapt, an input for it, and what vpeft is told to adapt."""

    name: str
    make: Callable[[], nn.Module]
    target: str
    inputs: Callable[[], Tensor]
    place: str = "qkv"


@dataclass(frozen=True)
class Count:
    """Sites of one library on one model, and how many are live; `words` is the error, or peft's warnings."""

    sites: int
    live: int
    words: str = ""


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
        return model

    return make


def _torchvision() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96)
    model.heads = nn.Identity()
    return model


def _swin(version: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models import swin_transformer as library

        block = library.SwinTransformerBlock if version == 1 else library.SwinTransformerBlockV2
        merging = library.PatchMerging if version == 1 else library.PatchMergingV2
        model: Any = library.SwinTransformer(
            [2, 2], 16, [2, 2], [2, 4], [4, 4], 2.0, block=block, downsample_layer=merging
        )
        model.head, model.image_size = nn.Identity(), 32  # vpeft's proof of life is quicker on the small image
        made: nn.Module = model
        return made

    return make


def _tower(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library: Any = need_extra("open_clip", "clip")
        if kind == "vision":
            tower: nn.Module = library.transformer.VisionTransformer(32, 8, 48, 2, 4, 2.0, output_dim=24)
            return tower
        tower = library.transformer.TextTransformer(8, 40, 48, 4, 2, 2.0, output_dim=24)
        return tower

    return make


def _images(side: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def _texts() -> Tensor:
    texts = torch.randint(1, 39, (2, 8), generator=torch.Generator().manual_seed(1))
    texts[:, -1] = 39
    return texts


SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 4}
TINY = {"img_size": 32, **SMALL}
SUBJECTS = (
    Subject("timm BEiT", _timm("beit_base_patch16_224", img_size=32, **SMALL), "qkv", _images(32)),
    Subject("timm EVA-02", _timm("eva02_tiny_patch14_224", img_size=28, **SMALL), "qkv", _images(28)),
    Subject(
        "timm Swin V2",
        _timm("swinv2_tiny_window8_256", img_size=64, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4)),
        "qkv",
        _images(64),
    ),
    Subject("timm DINOv3 with qkv bias", _timm("vit_small_patch16_dinov3_qkvb", **TINY), "qkv", _images(32)),
    Subject("torchvision Swin", _swin(1), "qkv", _images(32)),
    Subject("torchvision Swin V2", _swin(2), "qkv", _images(32)),
    Subject("torchvision ViT, output projection", _torchvision, "out_proj", _images(32), "proj"),
    Subject("torchvision ViT", _torchvision, "self_attention", _images(32)),
    Subject("open_clip image tower", _tower("vision"), "attn", _images(32)),
    Subject("open_clip text tower", _tower("text"), "attn", _texts),
)


def sites_of(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Trained tensors by site: vpeft's end in A and B, peft's in lora_A and lora_B with the adapter's name."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            site = name.split(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
            found.setdefault(site, []).append(parameter)
    return found


def measure(model: nn.Module, inputs: Tensor, parameters: Iterable[tuple[str, nn.Parameter]]) -> Count:
    """Count the sites of a model that carries LoRA, and the live ones among them."""
    sites = sites_of(parameters)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensors in sites.values():
            for tensor in tensors:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    model.eval()
    out = model(inputs)
    # an output that depends on no trained tensor has no gradient to give
    if out.requires_grad:
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
    live = 0
    for tensors in sites.values():
        learns = all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in tensors)
        with torch.no_grad():
            before = model(inputs)
            for tensor in tensors:
                tensor.mul_(1.5)
            matters = not torch.equal(model(inputs), before)
            for tensor in tensors:
                tensor.div_(1.5)
        live += learns and matters
    return Count(len(sites), live)


def with_vpeft(subject: Subject, model: nn.Module) -> Count:
    """vpeft's count; whatever it refuses is told."""
    try:
        tuned = vpeft.tune(model, LoRA(rank=RANK, targets=(subject.place,)), show=False)
    except vpeft.VpeftError as error:
        return Count(0, 0, str(error))
    return measure(tuned, subject.inputs(), tuned.trainable())


def with_peft(subject: Subject, model: nn.Module) -> Count:
    """peft's count; an error on the way is told in its own words."""
    peft: Any = need_extra("peft", "peft")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[subject.target])
            wrapped = peft.get_peft_model(model, config)
            count = measure(wrapped.base_model.model, subject.inputs(), wrapped.named_parameters())
        said = "; ".join(dict.fromkeys(str(entry.message).splitlines()[0][:120] for entry in heard))
        return Count(count.sites, count.live, said or "nothing")
    except Exception as error:
        return Count(0, 0, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")


def count_all(subjects: Iterable[Subject] = SUBJECTS) -> list[tuple[Subject, Count, Count]]:
    """vpeft's and peft's counts on every subject, each on its own copy of the same weights."""
    rows = []
    for subject in subjects:
        torch.manual_seed(0)
        model = subject.make()
        with torch.no_grad():  # some start their norms at zero, and then nothing inside a branch can matter
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        rows.append((subject, with_vpeft(subject, copy.deepcopy(model)), with_peft(subject, copy.deepcopy(model))))
    return rows


def page(rows: list[tuple[Subject, Count, Count]]) -> str:
    """The table in Markdown."""
    from importlib.metadata import version

    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "torchvision", "peft"))
    lines = [
        "# Live sites: vpeft and Hugging Face peft",
        "",
        "Written by `python benchmarks/live_sites.py`; do not edit. Both libraries put LoRA of rank"
        f" {RANK} on the joint projection to queries, keys and values (on the output projection where the row says so)"
        " of models with reduced width and depth and random weights, in one process. A site is one pair of factors. A"
        " site is live if both tensors receive a gradient and changing this site alone changes the output. The last"
        " three rows are models with torch's `nn.MultiheadAttention`: peft wraps the whole module and adapts the output"
        " projection too.",
        "",
        f"Measured with {libraries}, open_clip {version('open_clip_torch')}.",
        "",
        "| model | vpeft: live of sites | peft: live of sites | `target_modules` for peft | peft says |",
        "|---|---|---|---|---|",
    ]
    for subject, ours, theirs in rows:
        lines.append(
            f"| {subject.name} | {ours.live} of {ours.sites}{f' ({ours.words})' if ours.words else ''} |"
            f" {theirs.live} of {theirs.sites} | `{subject.target}` | {theirs.words} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    text = page(count_all())
    PAGE.write_text(text)
    print(text)
