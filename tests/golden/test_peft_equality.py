"""The methods of Hugging Face peft, with the same tensors in both: outputs and gradients on a tiny ViT, weights of
convolutions. peft wraps the fused qkv, proj, fc1 and fc2, so ours is given the same projections."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.families.timm_conv import tiny_basic_resnet
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from vpeft.methods import (
    BOFT,
    C3A,
    HRA,
    IA3,
    OFT,
    AdaLoRA,
    DoRA,
    FourierFT,
    LoHa,
    LoKr,
    LoRA,
    LoRAXS,
    Method,
    MiSS,
    RandLoRA,
    SHiRA,
    VBLoRA,
    VeRA,
)

peft = pytest.importorskip("peft")

TARGETS = ("qkv", "proj", "fc1", "fc2")
LAYERS = r"blocks\.\d+\.(attn|mlp)\.(qkv|proj|fc1|fc2)"
OURS = {"targets": TARGETS}


def same(t: Tensor) -> Tensor:
    return t


@dataclass
class Pair:
    """A method of ours, peft's, and how our tensors are made of peft's.

    Attributes:
        names: for each of our tensors, peft's attribute and the map from its tensor to ours. The maps are linear and
            keep lengths, so the same function takes gradients.
        frozen: our buffers, in the same way.
    """

    ours: Method
    config: Callable[[], object]
    names: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]
    frozen: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = field(default_factory=dict)
    verb: str = "reparametrize"


def made(kind: str, **fields: object) -> Callable[[], object]:
    return lambda: getattr(peft, kind)(target_modules=LAYERS, **fields)


def plain(**names: str) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    return {ours: (theirs, same) for ours, theirs in names.items()}


AB = plain(A="lora_A", B="lora_B")
LOHA = plain(A1="hada_w1_b", B1="hada_w1_a", A2="hada_w2_b", B2="hada_w2_a")
PAIRS = {
    "lora": Pair(LoRA(rank=4, alpha=6, **OURS), made("LoraConfig", r=4, lora_alpha=6), AB, verb="parallel"),
    "rslora": Pair(
        LoRA(rank=4, alpha=6, use_rslora=True, **OURS),
        made("LoraConfig", r=4, lora_alpha=6, use_rslora=True),
        AB,
        verb="parallel",
    ),
    "dora": Pair(
        DoRA(rank=4, alpha=6, **OURS),
        made("LoraConfig", r=4, lora_alpha=6, use_dora=True),
        AB | plain(magnitude="lora_magnitude_vector"),
    ),
    "vera": Pair(
        VeRA(rank=6, **OURS),
        made("VeraConfig", r=6),
        plain(d="vera_lambda_d", b="vera_lambda_b"),
        {"factors.A": ("vera_A", same), "factors.B": ("vera_B", same)},
    ),
    "loha": Pair(LoHa(rank=3, alpha=5, **OURS), made("LoHaConfig", r=3, alpha=5), LOHA),
    "lokr": Pair(
        LoKr(rank=2, alpha=5, **OURS),
        made("LoKrConfig", r=2, alpha=5),
        plain(C="lokr_w1", B="lokr_w2_a", A="lokr_w2_b"),
    ),
    "lokr_whole": Pair(
        LoKr(rank=64, factor=4, **OURS),
        made("LoKrConfig", r=64, alpha=64, decompose_factor=4),
        plain(C="lokr_w1", D="lokr_w2"),
    ),
    "hra": Pair(HRA(rank=4, **OURS), made("HRAConfig", r=4), plain(u="hra_u")),
    "hra_orthogonalised": Pair(
        HRA(rank=3, orthogonalised=True, **OURS), made("HRAConfig", r=3, apply_GS=True), plain(u="hra_u")
    ),
    "oft": Pair(
        # peft's exact form is the inverse rotation, that of -Q
        OFT(block=16, **OURS),
        made("OFTConfig", oft_block_size=16, use_cayley_neumann=False),
        {"upper": ("oft_R", torch.neg)},
    ),
    "oft_series": Pair(OFT(block=12, terms=5, **OURS), made("OFTConfig", oft_block_size=12), plain(upper="oft_R")),
    "oft_shared": Pair(
        OFT(block=8, terms=4, shared=True, **OURS),
        made("OFTConfig", oft_block_size=8, block_share=True, num_cayley_neumann_terms=4),
        plain(upper="oft_R"),
    ),
    **{
        f"boft_{m}": Pair(
            BOFT(block=4, factors=m, **OURS),
            made("BOFTConfig", boft_block_size=4, boft_n_butterfly_factor=m),
            plain(Q="boft_R", s="boft_s"),
        )
        for m in (1, 2, 3)
    },
    "fourierft": Pair(
        FourierFT(count=50, scale=20.0, **OURS),
        made("FourierFTConfig", n_frequency=50, scaling=20.0),
        plain(coefficients="fourierft_spectrum"),
    ),
    "randlora": Pair(
        RandLoRA(rank=5, alpha=10, **OURS),
        made("RandLoraConfig", r=5, randlora_alpha=10),
        plain(l="randlora_lambda", g="randlora_gamma"),
        # peft runs through A by rank and base and through B by base and rank: its B has its columns in another order
        {
            "bases.A": ("randlora_A", lambda t: t[:, 0, :48]),
            "bases.B": ("randlora_B", lambda t: t[:, :10].flatten(1).unflatten(1, (5, 10)).transpose(1, 2)),
        },
    ),
    "adalora": Pair(
        AdaLoRA(rank=6, alpha=9 * 6 / (6 + 1e-5), **OURS),  # peft divides by R + 1e-5
        made("AdaLoraConfig", init_r=6, target_r=4, lora_alpha=9, total_step=10),
        plain(A="lora_A", E="lora_E", B="lora_B"),
    ),
    "c3a": Pair(C3A(block=12, **OURS), made("C3AConfig", block_size=12), plain(kernel="c3a_kernel")),
    "miss": Pair(MiSS(rank=16, **OURS), made("MissConfig", r=16), plain(D="miss_block")),
    "miss_remainder": Pair(MiSS(rank=20, **OURS), made("MissConfig", r=20), plain(D="miss_block")),
    "miss_mini": Pair(
        MiSS(rank=8, form="mini", mini=6, **OURS),
        made("MissConfig", r=8, init_weights="mini", mini_r=6),
        plain(D="miss_block"),
    ),
    "bat": Pair(MiSS(rank=8, form="bat", **OURS), made("MissConfig", r=8, init_weights="bat"), plain(B="miss_block")),
    "vblora": Pair(
        VBLoRA(rank=2, vectors=9, length=8, top=3, **OURS),
        made("VBLoRAConfig", r=2, num_vectors=9, vector_length=8, topk=3),
        {"logits_A": ("vblora_logits_A", same), "logits_B": ("vblora_logits_B", same)}
        | plain(**{"bank.vectors": "vblora_vector_bank"}),
    ),
}


def tensor_of(layer: nn.Module, name: str) -> Tensor:
    """peft's tensor: a parameter, or a module that holds one."""
    found = getattr(layer, name)["default"]
    if isinstance(found, nn.Module):
        (found,) = found.parameters()
    return found


def both(pair: Pair, theirs: nn.Module, model: nn.Module, base: Callable[[], nn.Module]) -> list[tuple]:
    """Fill peft's tensors at random and copy them into ours; [(ours, theirs, map)] of what trains."""
    generator = torch.Generator().manual_seed(5)
    filled: set[int] = set()
    pairs = []
    for place, _ in base().named_modules():
        layer = dict(theirs.named_modules()).get(f"base_model.model.{place}")
        if layer is None or not isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            continue
        part = model.adapter().get_submodule(f"{place}.{pair.verb}")
        with torch.no_grad():
            for mine, (name, take) in {**pair.names, **pair.frozen}.items():
                twin = tensor_of(layer, name)
                if id(twin) not in filled and mine not in pair.frozen:
                    twin.add_(torch.randn(twin.shape, generator=generator) * 0.1)
                    filled.add(id(twin))
                own = part.get_parameter(mine) if mine in pair.names else part.get_buffer(mine)
                own.copy_(take(twin).reshape(own.shape))
                if mine in pair.names:
                    pairs.append((own, twin, take))
    return pairs


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1.0))


@pytest.fixture
def corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of peft that need a GPU, or whose backward pass is wrong, by plain operations."""

    def diagonals(blocks: Tensor) -> Tensor:
        return torch.stack([torch.block_diag(*level) for level in blocks])

    def convolved(x: Tensor, w: Tensor) -> Tensor:
        # peft 0.21 states a backward pass of its own, in which the gradient of x is that of another kernel
        mixed = torch.einsum("...nb,mnb->...mb", torch.fft.ifft(x.unflatten(-1, w.shape[1:])), torch.fft.fft(w))
        return torch.fft.fft(mixed).real.flatten(-2)

    layers = importlib.import_module("peft.tuners.boft.layer")
    monkeypatch.setattr(layers, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layers.FastBlockDiag, "apply", diagonals)
    monkeypatch.setattr("peft.tuners.c3a.layer.BlockCircularConvolution", SimpleNamespace(apply=convolved))


@pytest.mark.usefixtures("corrected")
@pytest.mark.filterwarnings("ignore:The symmetric initialization")
@pytest.mark.parametrize("name", PAIRS)
def test_equals_peft(name: str) -> None:
    pair = PAIRS[name]
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base_vit(), pair.config()).double().eval()
    ours = vpeft.tune(base_vit().double(), pair.ours, verify=False, show=False).eval()
    pairs = both(pair, theirs, ours, base_vit)
    assert len({id(own) for own, _, _ in pairs}) == len(list(ours.trainable()))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    y, z = ours.features(x), theirs(x)
    assert close(y, z, 1e-6), (y - z).abs().max()
    assert not close(y, base_vit().double()(x), 1e-3)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (z * direction).sum().backward()
    for own, twin, take in pairs:
        expected = take(twin.grad).reshape(own.shape)
        assert (own.grad - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert close(ours.merge().features(x), z, 1e-6)


def test_ia3_equals_peft() -> None:
    """peft scales the fused qkv as a whole; queries, keys and values are scaled one by one here."""
    config = peft.IA3Config(target_modules=LAYERS, feedforward_modules=r".*fc2")
    theirs = peft.get_peft_model(base_vit(), config).double().eval()
    ours = vpeft.tune(base_vit().double(), IA3(outputs=("q", "k", "v", "proj", "fc1")), verify=False, show=False).eval()
    twins = {key: value for key, value in theirs.named_parameters() if "ia3_l" in key}
    pairs = []
    for key, own in ours.trainable():
        place, _, _ = key.rpartition(".after")
        place = place or key.rpartition(".reparametrize")[0]
        *path, last = place.split(".")
        fused = last in "qkv"
        twin = twins[f"base_model.model.{'.'.join([*path, 'qkv' if fused else last])}.ia3_l.default"]
        part = slice(48 * "qkv".index(last), 48 * "qkv".index(last) + 48) if fused else slice(None)
        with torch.no_grad():
            own.copy_(1 + 0.3 * torch.randn_like(own))
            twin.flatten()[part] = own
        pairs.append((own, twin, part))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    y, z = ours.features(x), theirs(x)
    assert close(y, z, 1e-6)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (z * direction).sum().backward()
    for own, twin, part in pairs:
        expected = twin.grad.flatten()[part]
        assert (own.grad - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert close(ours.merge().features(x), z, 1e-6)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_shira_equals_peft() -> None:
    """peft keeps its places in the order of the rows, ours as they were drawn."""
    theirs = (
        peft.get_peft_model(base_vit(), peft.ShiraConfig(r=3, target_modules=LAYERS, random_seed=1)).double().eval()
    )
    ours = vpeft.tune(base_vit().double(), SHiRA(rank=3, **OURS), verify=False, show=False).eval()
    pairs = []
    for edit in ours.adapter().edits:
        layer = theirs.get_submodule(f"base_model.model.{edit.place.name}")
        row, column = layer.shira_indices["default"].long()
        edit.layer.index.copy_(row * layer.in_features + column)
        with torch.no_grad():
            edit.layer.values.normal_(std=0.3)
            layer.shira_weight["default"].copy_(edit.layer.values)
        pairs.append((edit.layer.values, layer.shira_weight["default"]))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    y, z = ours.features(x), theirs(x)
    assert close(y, z, 1e-6)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (z * direction).sum().backward()
    assert all((own.grad - twin.grad).abs().max() <= 1e-6 * twin.grad.abs().max() for own, twin in pairs)


def test_lora_xs_is_a_lora_between_frozen_singular_vectors() -> None:
    """peft has no LoRA-XS: its LoRA is given A and B R, and the gradient of B R is carried to R."""
    theirs = peft.get_peft_model(base_vit(), peft.LoraConfig(r=5, lora_alpha=10, target_modules=LAYERS)).double().eval()
    ours = vpeft.tune(base_vit().double(), LoRAXS(rank=5, alpha=10, std=0.5, **OURS), verify=False, show=False).eval()
    layers = {edit.place.name: edit.layer for edit in ours.adapter().edits}
    with torch.no_grad():
        for name, layer in layers.items():
            weight = base_vit().double().get_submodule(name).weight
            best = layer.B @ layer.A
            assert close((weight - best).norm(), torch.linalg.svdvals(weight)[5:].norm(), 1e-6)
            twin = theirs.get_submodule(f"base_model.model.{name}")
            tensor_of(twin, "lora_A").copy_(layer.A)
            tensor_of(twin, "lora_B").copy_(layer.B @ layer.R)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    y, z = ours.features(x), theirs(x)
    assert close(y, z, 1e-6)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (z * direction).sum().backward()
    for name, layer in layers.items():
        twin = theirs.get_submodule(f"base_model.model.{name}")
        expected = layer.B.T @ tensor_of(twin, "lora_B").grad
        assert (layer.R.grad - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_from_the_weight_equal_peft(start: str) -> None:
    """peft changes the frozen weight and ours keeps it: equal factors, step 0, and function and gradients after."""
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=start, target_modules=LAYERS)
    theirs = peft.get_peft_model(base_vit(), config).double().eval()
    ours = vpeft.tune(base_vit().double(), LoRA(rank=4, alpha=6, start=start, **OURS), show=False).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert close(ours.features(x), base_vit().double()(x), 1e-6)
    layers = {edit.place.name: edit.layer for edit in ours.adapter().edits}
    for name, layer in layers.items():
        twin = theirs.get_submodule(f"base_model.model.{name}")
        a, b = tensor_of(twin, "lora_A"), tensor_of(twin, "lora_B")
        assert close(layer.B @ layer.A, b @ a, 1e-5)
        assert close(layer.A.abs(), a.abs(), 1e-4)  # a singular vector has no sign
        with torch.no_grad():
            layer.A.copy_(a + 0.1 * torch.randn_like(a))
            layer.B.copy_(b + 0.1 * torch.randn_like(b))
            a.copy_(layer.A)
            b.copy_(layer.B)
    y, z = ours.features(x), theirs(x)
    assert close(y, z, 1e-5)  # peft's frozen rest was rounded to single precision
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (z * direction).sum().backward()
    for name, layer in layers.items():
        twin = theirs.get_submodule(f"base_model.model.{name}")
        for own, other in ((layer.A, tensor_of(twin, "lora_A")), (layer.B, tensor_of(twin, "lora_B"))):
            assert (own.grad - other.grad).abs().max() <= 1e-4 * other.grad.abs().max()
    assert close(ours.merge().features(x), y, 1e-6)


@pytest.mark.filterwarnings("ignore:lora with eva initialization")
def test_eva_finds_the_directions_that_peft_finds() -> None:
    """Over the same images, all at once; peft's incremental PCA is then exact, up to the sign of each direction."""
    torch.manual_seed(4)
    images, labels = torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.long)
    config = peft.LoraConfig(
        r=4, init_lora_weights="eva", target_modules=LAYERS, eva_config=peft.EvaConfig(rho=1.0, tau=0.99)
    )
    theirs = peft.get_peft_model(base_vit(), config).eval()
    peft.initialize_lora_eva_weights(
        theirs, [images], forward_fn=lambda model, x: model(x), prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip
    ours = vpeft.tune(base_vit(), LoRA(rank=4, start="eva", **OURS), show=False)
    ours.prepare([(images[:9], labels[:9]), (images[9:], labels[9:])])
    x = torch.randn(2, 3, 32, 32)
    assert close(ours.eval().features(x), base_vit()(x), 1e-6)
    for edit in ours.adapter().edits:
        inputs: list[Tensor] = []
        plain = base_vit()
        plain.get_submodule(edit.place.name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        with torch.no_grad():
            plain(images)
        rows = inputs[0].flatten(0, -2).double()
        centred = rows - rows.mean(dim=0)
        expected = torch.linalg.svd(centred, full_matrices=False).Vh[:4]
        assert close((edit.layer.A.double() @ expected.T).abs(), torch.eye(4).double(), 1e-4)
        # peft's is a randomised decomposition, which keeps a little less of the variance
        theirs_a = tensor_of(theirs.get_submodule(f"base_model.model.{edit.place.name}"), "lora_A").double()
        best, kept = ((centred @ a.T).square().sum() for a in (expected, theirs_a))
        assert 0.98 * best < kept < (1 + 1e-4) * best
    before = [edit.layer.A.clone() for edit in ours.adapter().edits]
    ours.prepare([(x, labels[:2])])  # measured already: a resumed adapter keeps its directions
    assert all(torch.equal(edit.layer.A, old) for edit, old in zip(ours.adapter().edits, before, strict=True))


def test_random_starts() -> None:
    layer = vpeft.tune(base_vit(), LoRA(rank=4, start="orthogonal", **OURS), show=False).adapter().edits[0].layer
    assert layer.B.abs().max() > 0.01 and (layer.B @ layer.A).abs().max() < 1e-6
    layer = vpeft.tune(base_vit(), LoRA(rank=4, start="gaussian", **OURS), show=False).adapter().edits[0].layer
    assert not layer.B.any() and 0.2 < layer.A.std() < 0.3
    with pytest.raises(vpeft.VpeftError, match="even rank, not 3"):
        vpeft.tune(base_vit(), LoRA(rank=3, start="orthogonal"), show=False)
    with pytest.raises(vpeft.VpeftError, match="at most 48"):
        vpeft.tune(base_vit(), LoRA(rank=49, start="pissa"), show=False)
    with pytest.raises(vpeft.VpeftError, match="needs more than 40"):
        vpeft.tune(base_vit(), LoRA(rank=40, start="eva"), show=False).prepare([(torch.randn(1, 3, 32, 32), [0])])


def test_adalora_prunes_what_peft_prunes() -> None:
    """Ten steps of plain gradient descent in both, with the schedule in shares and in steps; and the penalty."""
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=4, total_step=10, tinit=2, tfinal=3, deltaT=1, target_modules=LAYERS
    )
    theirs = peft.get_peft_model(base_vit(), config).double()
    method = AdaLoRA(rank=4, target=2, alpha=4 * 4 / (4 + 1e-5), begin=0.2, settle=0.3, **OURS)
    ours = vpeft.tune(base_vit().double(), method, verify=False, show=False)
    pairs = both(Pair(method, lambda: config, plain(A="lora_A", E="lora_E", B="lora_B")), theirs, ours, base_vit)
    x, direction = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.randn(2, 48, dtype=torch.float64)
    grams = [(t @ t.T if n.endswith("A") else t.T @ t) for n, t in ours.trainable() if n[-1] in "AB"]
    expected = 0.5 * torch.stack([(gram - torch.eye(4)).square().sum().sqrt() for gram in grams]).mean()
    assert close(ours.penalty(), expected, 1e-9)
    kept = []
    for step in range(1, 11):
        for model in (ours, theirs):
            out = model.features(x) if model is ours else model(x)
            (out * direction).sum().backward()
        with torch.no_grad():
            for tensor in (t for pair in pairs for t in pair[:2]):
                tensor -= 1e-3 * tensor.grad
        theirs.base_model.update_and_allocate(step)
        ours.after_backward()
        ours.advance(step / 10)
        kept.append(sum(int((own != 0).sum()) for own, _, _ in pairs if own.shape == (4, 1)))
        for own, twin, _ in pairs:
            assert close(own, twin.reshape(own.shape), 1e-6), step
            own.grad = twin.grad = None
    assert kept[1] == 48 > kept[3] > kept[6] == kept[-1] == 24


CONVS = {"targets": ("all",)}
CONVOLUTIONS = {
    "lora": Pair(LoRA(rank=3, alpha=6, **CONVS), made("LoraConfig", r=3, lora_alpha=6), AB),
    "dora": Pair(
        DoRA(rank=3, alpha=6, **CONVS),
        made("LoraConfig", r=3, lora_alpha=6, use_dora=True),
        AB | plain(magnitude="lora_magnitude_vector"),
    ),
    "loha": Pair(LoHa(rank=3, alpha=5, **CONVS), made("LoHaConfig", r=3, alpha=5), LOHA),
    "lokr": Pair(
        LoKr(rank=1, alpha=5, **CONVS),
        made("LoKrConfig", r=1, alpha=5),
        plain(C="lokr_w1", B="lokr_w2_a", A="lokr_w2_b"),
    ),
    "lokr_whole": Pair(
        LoKr(rank=64, factor=2, **CONVS),
        made("LoKrConfig", r=64, alpha=64, decompose_factor=2),
        plain(C="lokr_w1", D="lokr_w2"),
    ),
    "hra": Pair(HRA(rank=4, **CONVS), made("HRAConfig", r=4), plain(u="hra_u")),
    "oft": Pair(OFT(block=4, terms=5, **CONVS), made("OFTConfig", oft_block_size=4), plain(upper="oft_R")),
    "boft": Pair(BOFT(block=4, **CONVS), made("BOFTConfig", boft_block_size=4), plain(Q="boft_R", s="boft_s")),
}


@pytest.mark.usefixtures("corrected")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weights_of_convolutions_equal_peft(name: str) -> None:
    """Merged, as peft's forward pass of OFT sums overlapping patches, which is another function than its merged one."""
    pair = CONVOLUTIONS[name]
    torch.manual_seed(0)
    ours = vpeft.tune(tiny_basic_resnet().eval(), pair.ours, verify=False, show=False).eval()
    config = pair.config()
    modules = {edit.place.module for edit in ours.adapter().edits}
    config.target_modules = [path for path, module in ours.backbone.named_modules() if module in modules]
    torch.manual_seed(0)
    theirs = peft.get_peft_model(tiny_basic_resnet().eval(), config).eval()
    places = {edit.place.module: edit.layer for edit in ours.adapter().edits}
    generator = torch.Generator().manual_seed(5)
    before = {}
    for path, module in ours.backbone.named_modules():
        if module not in places:
            continue
        before[path] = module.weight.clone()
        twin = theirs.get_submodule(f"base_model.model.{path}")
        with torch.no_grad():
            for mine, (attribute, take) in pair.names.items():
                value = tensor_of(twin, attribute)
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
                own = places[module].get_parameter(mine)
                own.copy_(take(value).reshape(own.shape))
    assert len(before) == len(places) > 1
    theirs.merge_adapter()
    ours.merge()
    for path, weight in before.items():
        merged = ours.backbone.get_submodule(path).weight
        expected = theirs.get_submodule(f"base_model.model.{path}").get_base_layer().weight
        assert close(merged, expected, 1e-6) and not torch.allclose(merged, weight, atol=1e-3)


COUNTS = {
    "LoRA, any start": (LoRA(rank=8, use_rslora=True, start="gaussian"), 24 * 8 * 1536),
    "DoRA": (DoRA(), 24 * (8 * 1536 + 768)),
    "VeRA": (VeRA(), 24 * (256 + 768)),
    "LoHa": (LoHa(), 24 * 2 * 8 * 1536),
    "LoKr": (LoKr(), 24 * (24 * 24 + 2 * 8 * 32)),
    "IA3": (IA3(), 12 * (768 + 768 + 3072)),
    "OFT": (OFT(), 24 * 24 * 496),
    "BOFT": (BOFT(), 24 * (768 * 4 + 768)),
    "HRA": (HRA(), 24 * 8 * 768),
    "FourierFT": (FourierFT(), 24 * 1000),
    "RandLoRA": (RandLoRA(), 24 * (768 + 24 * 768)),
    "LoRA-XS": (LoRAXS(), 24 * 16 * 16),
    "SHiRA": (SHiRA(), 24 * 32 * 1536),
    "AdaLoRA": (AdaLoRA(), 24 * (12 * 1536 + 12)),
    "C3A": (C3A(), 24 * 768 * 768 // 256),
    "MiSS": (MiSS(), 24 * 64 * 768),
    "Bat": (MiSS(form="bat"), 24 * 64 * 768),
    "VB-LoRA": (VBLoRA(), 24 * 2 * 4 * 3 * 256 + 256 * 256),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    """On ViT-B/16, by the formulas; queries and values unless the method says other."""
    method, expected = COUNTS[name]
    assert trained(method) == expected
