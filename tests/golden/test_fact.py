"""FacT-TT, FacT-TK and the mode approximation of PETAL: authors' numbers, restatements, counts, merging."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.layers.factored import Factors
from vpeft.method import BadField
from vpeft.methods import PETAL, FacTTK, FacTTT, Method

SHORT = {"attn.q": "q", "attn.k": "k", "attn.v": "v", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
FIRST = "blocks.0.attn.q.parallel.factors"


def test_fact_tt_equals_the_authors_code() -> None:
    mapping = {f"{FIRST}.U": lambda t: t["FacTu.weight"], f"{FIRST}.V": lambda t: t["FacTv.weight"]}
    for block in range(3):
        for place, short in SHORT.items():
            key = f"blocks.{block}.{place.split('.')[0]}.{short}_FacTs.weight"
            mapping[f"blocks.{block}.{place}.parallel.core"] = lambda t, key=key: t[key]
    reproduce("fact_tt", "vit", FacTTT(rank=4, scale=0.5), mapping)


def test_petal_equals_the_authors_code() -> None:
    def bank(t: dict[str, Tensor]) -> Tensor:
        parts = [t[f"blocks.{b}.{key}"] for b in range(3) for key in ("attn.CP_attention", "mlp.mlp_CP")]
        return torch.cat(parts, dim=1)

    mapping = {
        f"{FIRST}.U": lambda t: t["CP_U.weight"],
        f"{FIRST}.V": lambda t: t["CP_V.weight"],
        f"{FIRST}.C": lambda t: t["CP_C"],
        f"{FIRST}.P": bank,
    }
    reproduce("petal", "vit", PETAL(core="tucker", rank=4), mapping)


def restated(tuned: vpeft.TunedModel, method: Method) -> Tensor:
    """Every delta by the papers' equations, one matrix D x D at a time."""
    t = dict(tuned.trainable())
    U, V, D, r, s = t[f"{FIRST}.U"], t[f"{FIRST}.V"], 48, method.rank, method.scale
    changes = {}

    def sigma(block: int, place: str) -> list[Tensor]:
        """The cores S_j (r, r) of a place, used as (U x) S_j; for fc2 the parts of the input."""
        if isinstance(method, FacTTT):
            core = t[f"blocks.{block}.{place}.parallel.core"]
            return [
                part.T
                for part in (core.chunk(4, dim=0) if place == "mlp.fc1" else core.chunk(core.shape[1] // r, dim=1))
            ]
        start = 12 * block + {"attn.q": 0, "attn.k": 1, "attn.v": 2, "attn.proj": 3, "mlp.fc1": 4, "mlp.fc2": 8}[place]
        columns = t[f"{FIRST}.P"][:, start : start + (4 if "fc" in place else 1)]
        if isinstance(method, PETAL) and method.core == "cp":
            return [torch.diag(t[f"{FIRST}.weight"] * column) for column in columns.T]
        mixed = torch.einsum("abc,cj->abj", t[f"{FIRST}.C"], columns)
        parts = mixed.reshape(r, -1).split(r, dim=1)  # row-major, as the code reads it: (a, b, i) at column 4 b + i
        return [part.T for part in parts] if place == "mlp.fc2" else list(parts)

    for block in range(3):
        name = f"blocks.{block}"

        def qkv(out, x, block=block):  # type: ignore[no-untyped-def]
            return out + s * torch.cat([x @ U.T @ sigma(block, p)[0] @ V.T for p in ("attn.q", "attn.k", "attn.v")], -1)

        def proj(out, x, block=block):  # type: ignore[no-untyped-def]
            return out + s * x @ U.T @ sigma(block, "attn.proj")[0] @ V.T

        def fc1(out, x, block=block):  # type: ignore[no-untyped-def]
            return out + s * torch.cat([x @ U.T @ part @ V.T for part in sigma(block, "mlp.fc1")], -1)

        def fc2(out, h, block=block):  # type: ignore[no-untyped-def]
            pieces = zip(h.split(D, dim=-1), sigma(block, "mlp.fc2"), strict=True)
            return out + s * sum(piece @ U.T @ part @ V.T for piece, part in pieces)

        changes |= {f"{name}.qkv": qkv, f"{name}.proj": proj, f"{name}.fc1": fc1, f"{name}.fc2": fc2}
    return ViTByHand(base_vit(), changes)(images_for(base_vit()))


METHODS = [FacTTT(rank=3, scale=2.0), FacTTK(rank=3, scale=2.0), PETAL(rank=5), PETAL(core="tucker", rank=5, scale=0.5)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'core', '')}")
def test_equals_a_restatement_and_merges(method: Method) -> None:
    tuned = vpeft.tune(base_vit(), method, show=False)
    randomise(tuned, 0.3)
    x = images_for(base_vit())
    before = tuned.features(x)
    assert not torch.allclose(before, base_vit()(x), atol=1e-2)
    assert torch.allclose(before, restated(tuned, method), atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-4)


def test_cp_is_tucker_with_a_diagonal_core_on_square_matrices() -> None:
    square = ("q", "k", "v", "proj")
    cp = vpeft.tune(base_vit(), PETAL(rank=4, targets=square), show=False)
    tucker = vpeft.tune(base_vit(), PETAL(core="tucker", rank=4, targets=square), show=False)
    randomise(cp)
    ours, theirs = dict(cp.trainable()), dict(tucker.trainable())
    with torch.no_grad():
        for name in ("U", "V", "P"):
            theirs[f"{FIRST}.{name}"].copy_(ours[f"{FIRST}.{name}"])
        theirs[f"{FIRST}.C"].zero_()
        for r in range(4):
            theirs[f"{FIRST}.C"][r, r, r] = ours[f"{FIRST}.weight"][r]
    x = images_for(base_vit())
    assert torch.allclose(cp.features(x), tucker.features(x), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (FacTTT(rank=8), 21_504),
        (FacTTT(rank=16), 61_440),
        (FacTTT(rank=32), 196_608),
        (FacTTK(rank=8), 13_952),
        (FacTTK(rank=16), 30_976),
        (FacTTK(rank=32), 86_528),
        (FacTTK(rank=64), 369_664),
        (PETAL(), 107_584),
        (PETAL(core="tucker"), 369_664),
    ],
    ids=repr,
)
def test_counts(method: Method, count: int) -> None:
    assert trained(method) == count


def test_each_stage_of_swin_has_factors_of_its_own() -> None:
    for method in (FacTTT(rank=2), FacTTK(rank=2)):
        tuned = vpeft.tune(tiny_swin(), method, show=False)
        factors = {name: p.shape[1] for name, p in tuned.trainable() if name.endswith(".U")}
        assert factors == {"blocks.0.attn.q.parallel.factors.U": 24, "blocks.2.attn.q.parallel.factors.U": 48}
        randomise(tuned, 0.3)
        x = images_for(tiny_swin())
        before = tuned.features(x)
        assert torch.allclose(tuned.merge().features(x), before, atol=1e-4)


def test_the_bank_starts_from_the_shapes_of_the_code() -> None:
    torch.manual_seed(1)
    tuned = vpeft.tune(tiny_vit(depth=12, embed_dim=24), FacTTK(rank=24), show=False)
    bank, core = (tuned.adapter().get_parameter(f"{FIRST}.{name}") for name in ("P", "C"))
    assert bank.shape == (24, 144)
    bound = (6 / (24 + 144)) ** 0.5
    assert 0.98 * bound < float(bank.detach().abs().max()) <= bound
    bound = (6 / (24 * 24 + 24 * 24)) ** 0.5
    assert 0.98 * bound < float(core.detach().abs().max()) <= bound
    assert not bool(tuned.adapter().get_parameter(f"{FIRST}.V").any())


def test_what_does_not_split_is_refused_by_name() -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"'q'"):
        vpeft.tune(tiny_convnext(), FacTTT(), show=False)
    with pytest.raises(vpeft.MissingPlace, match=r"fc1 maps 48 to 72 .* Leave it out"):
        vpeft.tune(tiny_vit(mlp_ratio=1.5), FacTTK(), show=False)
    kept = FacTTK(rank=4, targets=("q", "k", "v", "proj"))
    assert vpeft.tune(tiny_vit(mlp_ratio=1.5), kept, show=False).plan().trainable == 2 * 48 * 4 + 64 + 12 * 4


@pytest.mark.parametrize("core", ["cp", "tucker"])
def test_two_towers_share_their_factors(core: Literal["cp", "tucker"], tmp_path: Path) -> None:
    """Both towers train one U, V and core, whose gradient is the sum of what each gives; each has mixing of its own."""
    method = PETAL(core=core, rank=4, dropout=0.0)
    towers = [vpeft.tune(make(), method, show=False) for make in (tiny_vit, lambda: tiny_vit(depth=2))]
    plain = [tower.features(torch.ones(1, 3, 32, 32)) for tower in towers]
    PETAL.share(*towers)
    for tower, before in zip(towers, plain, strict=True):
        assert torch.allclose(tower.features(torch.ones(1, 3, 32, 32)), before, atol=1e-6)
    parameters = {id(p): p for tower in towers for _, p in tower.trainable()}
    shared = 2 * 48 * 4 + (4 if core == "cp" else 64)
    assert sum(p.numel() for p in parameters.values()) == shared + 4 * 12 * (3 + 2)
    with torch.no_grad():
        factors = [next(m for m in t.adapter().modules() if isinstance(m, Factors)) for t in towers]
        factors[0].V.copy_(torch.randn(48, 4))
    assert factors[1].V is factors[0].V and factors[1].P is not factors[0].P
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    alone = [torch.autograd.grad(tower.features(images).square().sum(), factors[0].U)[0] for tower in towers]
    assert all(slope.any() for slope in alone)
    torch.stack([tower.features(images).square().sum() for tower in towers]).sum().backward()
    assert factors[0].U.grad is not None
    assert torch.allclose(factors[0].U.grad, sum(alone), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
    paths = [tower.save(tmp_path / f"{i}.safetensors") for i, tower in enumerate(towers)]
    expected = [tower.features(images) for tower in towers]
    again = [vpeft.load(tower.detach(), path) for tower, path in zip(towers, paths, strict=True)]
    PETAL.share(*again)
    assert all(torch.equal(one.features(images), wanted) for one, wanted in zip(again, expected, strict=True))
    assert len({id(p) for tower in again for _, p in tower.trainable()}) == len(parameters)


def test_what_cannot_be_shared_says_why() -> None:
    first = vpeft.tune(tiny_vit(), PETAL(rank=4), show=False)
    with pytest.raises(BadField, match="nothing to share: .*cp.*tucker"):
        PETAL.share(first, vpeft.tune(tiny_vit(), PETAL(rank=4, core="tucker"), show=False))
    apart = vpeft.tune(tiny_vit(), PETAL(rank=4), show=False)
    with torch.no_grad():
        next(m for m in apart.adapter().modules() if isinstance(m, Factors)).V.fill_(1.0)
    with pytest.raises(BadField, match="trained apart: U, V"):
        PETAL.share(first, apart)
