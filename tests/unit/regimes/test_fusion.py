"""Fusing: each way against a plain restatement, mixed methods, files that load and answer per task, and refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vpeft
from vpeft.cli import main
from vpeft.injection.adapter_file import read_manifest
from vpeft.regimes.fusion.fuse import FUSED, names_of, values_of
from vpeft.regimes.fusion.ground import NoImages
from vpeft.regimes.fusion.put_on import whole_parts
from vpeft.regimes.fusion.routing import routing_shares
from vpeft.regimes.fusion.sources import CannotFuse
from vpeft.regimes.fusion.way import BadWay, UnknownWay, all_ways, make_way
from vpeft.regimes.fusion.ways.adamerging import scaled
from vpeft.regimes.one_task import NoSuchTask, OneTask
from vpeft.tasks.classification import Classification

Weights = dict[str, Tensor]
CLASSES = {"a": 3, "b": 4, "c": 2}


def base() -> Any:
    """The same tiny ViT at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return VisionTransformer(
            img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=0, global_pool="token"
        ).eval()


def tuned_on(task: str, *methods: vpeft.Method, seed: int = 0) -> vpeft.TunedModel:
    """A model whose trained tensors are off their start, as if it had learnt."""
    labels = tuple(f"{task}{number}" for number in range(CLASSES.get(task, 2)))
    with torch.random.fork_rng():
        torch.manual_seed(seed + ord(task[0]))
        tuned = vpeft.tune(base(), *methods, task=Classification(labels=labels), verify=False)
        with torch.no_grad():
            for _, value in tuned.trainable():
                value.add_(0.05 * torch.randn_like(value))
    return tuned.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of three methods on one backbone."""
    folder = tmp_path_factory.mktemp("fusion")
    made = {"a": vpeft.methods.LoRA(rank=2), "b": vpeft.methods.SSF(), "c": vpeft.methods.RepAdapter()}
    return {name: tuned_on(name, method).save(folder / f"{name}.safetensors") for name, method in made.items()}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two fully fine-tuned models, as adapter files."""
    folder = tmp_path_factory.mktemp("full")
    return {name: tuned_on(name, vpeft.methods.FullFinetuning()).save(folder / f"{name}.safetensors") for name in "ab"}


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def data(names: str = "abc", count: int = 20) -> dict[str, list[Any]]:
    generator = torch.Generator().manual_seed(2)
    return {name: [(torch.randn(3, 32, 32, generator=generator), 0) for _ in range(count)] for name in names}


def weights_of(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def task_vectors(files: dict[str, Path]) -> tuple[Weights, list[Weights]]:
    """theta_0, and theta_n - theta_0 of each file, all parameters."""
    before, found = weights_of(base()), []
    for path in files.values():
        tuned = vpeft.load(base(), path)
        if not isinstance(tuned.methods()[0], vpeft.methods.FullFinetuning):
            tuned.merge()
        after = weights_of(tuned.backbone)
        found.append({name: after[name] - value for name, value in before.items()})
    return before, found


def fused_weights(files: dict[str, Path], how: str, **more: Any) -> Weights:
    return values_of(vpeft.fuse(base(), files, how, **more))


def assert_close(found: Weights, expected: Weights, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance, msg=name)


# -- each way against a restatement ------------------------------------------------------------------------------------


def test_one_adapter_alone_computes_what_it_computed(files: dict[str, Path]) -> None:
    for name, path in files.items():
        expected = vpeft.load(base(), path).eval()(images())
        for how in ("averaging", "task_arithmetic(scale=1.0)", "ties(density=1.0)", "dare(drop=0.0, scale=1.0)"):
            fused = vpeft.fuse(base(), {name: path}, how)
            torch.testing.assert_close(fused(images())[name], expected, atol=1e-5, rtol=1e-5)


def test_averaging_and_task_arithmetic(files: dict[str, Path]) -> None:
    before, changes = task_vectors(files)
    mean = {name: value + sum(one[name] for one in changes) / 3 for name, value in before.items()}
    assert_close(fused_weights(files, "averaging"), mean)
    weighed = {
        name: value + 0.5 * changes[0][name] - 0.2 * changes[1][name] + 1.0 * changes[2][name]
        for name, value in before.items()
    }
    assert_close(fused_weights(files, "task_arithmetic(scales=[0.5, -0.2, 1.0])"), weighed)


@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_ties(full: dict[str, Path], merge: str) -> None:
    before, changes = task_vectors(full)
    names = sorted(before)
    vectors = torch.stack([torch.cat([one[name].flatten() for name in names]) for one in changes])
    count = vectors.shape[1]
    for row in vectors:  # trim: int(0.3 d) + 1 entries stay
        order = row.abs().argsort(descending=True)
        row[order[int(0.3 * count) + 1 :]] = 0
    total = vectors.sum(0)
    sign = torch.where(total == 0, total.sign().sum().sign(), total.sign())
    kept = vectors * (vectors.sign() == sign)
    merged = kept.sum(0)
    if merge == "mean":
        merged = merged / (kept != 0).sum(0).clamp(min=1)
    found, at = {}, 0
    for name in names:
        size = before[name].numel()
        found[name] = before[name] + 0.7 * merged[at : at + size].reshape(before[name].shape)
        at += size
    expected = {name: found[name] for name in before}
    assert_close(fused_weights(full, f"ties(density=0.3, scale=0.7, merge={merge})"), expected)


def test_dare_drops_a_share_and_keeps_the_expected_change(full: dict[str, Path]) -> None:
    before, changes = task_vectors({"a": full["a"]})
    found = fused_weights({"a": full["a"]}, "dare(drop=0.75, scale=1.0)")
    name = "blocks.0.mlp.fc1.weight"
    added, whole = found[name] - before[name], changes[0][name]
    kept = added.abs() > 1e-7
    torch.testing.assert_close(added[kept], 4 * whole[kept], atol=1e-5, rtol=1e-4)
    assert 0.2 < float(kept.float().mean()) < 0.3
    again = fused_weights({"a": full["a"]}, "dare(drop=0.75, scale=1.0)")
    assert all(torch.equal(found[key], again[key]) for key in found)
    other = fused_weights({"a": full["a"]}, "dare(drop=0.75, scale=1.0)", seed=1)
    assert not torch.equal(found[name], other[name])


def run(weights: Weights, head: nn.Linear, pixels: Tensor) -> Tensor:
    found: Tensor = head(torch.func.functional_call(base(), weights, (pixels,)))
    return found


def test_fisher(full: dict[str, Path]) -> None:
    before, changes = task_vectors(full)
    given = data("ab", count=3)
    squares = []
    for (name, path), change in zip(full.items(), changes, strict=True):
        head = vpeft.load(base(), path).head
        assert isinstance(head, nn.Linear)
        weights = {key: (value + change[key]).requires_grad_() for key, value in before.items()}
        total = {key: torch.zeros_like(value) for key, value in before.items()}
        for pixels, _ in given[name]:
            probabilities = run(weights, head, pixels[None]).softmax(-1)[0]
            for number, probability in enumerate(probabilities.detach()):
                gradients = torch.autograd.grad(
                    run(weights, head, pixels[None]).log_softmax(-1)[0, number], list(weights.values())
                )
                for key, gradient in zip(total, gradients, strict=True):
                    total[key] += probability * gradient**2 / len(given[name])
        squares.append(total)
    norms = [torch.sqrt(sum((value**2).sum() for value in one.values())) for one in squares]  # type: ignore[arg-type]
    expected = {}
    for key, value in before.items():
        above, below = torch.zeros(()), torch.zeros(())
        for one, norm, change in zip(squares, norms, changes, strict=True):
            weight = (one[key] + 1e-6) / (norm + 1e-6)
            above, below = above + weight * (value + change[key]), below + weight
        expected[key] = above / below
    assert_close(fused_weights(full, "fisher(images=3)", data=given), expected)


def linear_inputs(weights: Weights, pixels: Tensor) -> dict[str, Tensor]:
    """What enters each linear layer, (n, width), by the name of its weight."""
    model, kept = base(), dict[str, Tensor]()
    model.load_state_dict(weights)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _, given, out, name=name: kept.__setitem__(f"{name}.weight", given[0].detach().flatten(0, -2))
            )
    model(pixels)
    return kept


def solution(models: list[Weights], inputs: list[dict[str, Tensor]], name: str, ratio: float) -> Tensor:
    grams = []
    for one in inputs:
        gram = one[name].double().T @ one[name].double() / len(one[name])
        grams.append(gram * (ratio + (1 - ratio) * torch.eye(len(gram), dtype=torch.float64)))
    right = sum(gram @ one[name].double().T for gram, one in zip(grams, models, strict=True))
    found: Tensor = torch.linalg.inv(torch.stack(grams).sum(0)) @ right
    return found.T.float()


def test_regmean(full: dict[str, Path]) -> None:
    before, changes = task_vectors(full)
    given = data("ab")
    models = [{name: value + one[name] for name, value in before.items()} for one in changes]
    inputs = [
        linear_inputs(model, torch.stack([pixels for pixels, _ in given[name]]))
        for model, name in zip(models, "ab", strict=True)
    ]
    expected = {name: (models[0][name] + models[1][name]) / 2 for name in before}
    for name in inputs[0]:
        expected[name] = solution(models, inputs, name, 0.9)
    assert_close(fused_weights(full, "regmean(images=20, batch=7)", data=given), expected)


def test_regmean_plus_plus(full: dict[str, Path]) -> None:
    before, changes = task_vectors(full)
    given = data("ab")
    models = [{name: value + one[name] for name, value in before.items()} for one in changes]
    pixels = [torch.stack([one for one, _ in given[name]]) for name in "ab"]
    expected = {name: (models[0][name] + models[1][name]) / 2 for name in before}
    for block in ("blocks.0.", "blocks.1."):
        hybrids = [
            {name: model[name] if name.startswith(block) else expected[name] for name in before} for model in models
        ]
        inputs = [linear_inputs(one, some) for one, some in zip(hybrids, pixels, strict=True)]
        found = {name: solution(models, inputs, name, 0.9) for name in inputs[0] if name.startswith(block)}
        expected |= found
    assert_close(fused_weights(full, "regmean_plus_plus(images=20, batch=20)", data=given), expected)


@pytest.mark.parametrize("per", ["layer", "task"])
def test_adamerging(full: dict[str, Path], per: str) -> None:
    before, changes = task_vectors(full)
    given = data("ab", count=8)  # one batch is all of a task, so that its order does not matter
    heads = [vpeft.load(base(), path).head for path in full.values()]
    names = sorted(before)
    factors = torch.full((2, len(names) if per == "layer" else 1), 0.3, requires_grad=True)
    optimiser = torch.optim.Adam([factors], lr=0.01)

    def merged(values: Tensor) -> Weights:
        return {
            name: before[name]
            + sum(values[n, names.index(name) if per == "layer" else 0] * changes[n][name] for n in range(2))
            for name in before
        }

    for _ in range(3):
        loss = torch.zeros(())
        for head, name in zip(heads, "ab", strict=True):
            assert isinstance(head, nn.Linear)
            pixels = torch.stack([one for one, _ in given[name]])
            logs = run(merged(factors), head, pixels).log_softmax(-1)
            loss = loss - (logs.exp() * logs).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert not torch.allclose(factors, torch.full_like(factors, 0.3), atol=1e-3)
    found = fused_weights(full, f"adamerging(per={per}, steps=3, batch=8, lr=0.01)", data=given)
    assert_close(found, merged(factors.detach()))


def test_factors_of_ties_and_adamerging_meet() -> None:
    stacked = {"w": torch.tensor([[1.0, -2.0], [3.0, 4.0]]), "b": torch.tensor([[1.0], [1.0]])}
    found = scaled(stacked, torch.tensor([[0.5, 1.0], [0.25, 2.0]]))
    assert found["w"].tolist() == [1.25, 0.0] and found["b"].tolist() == [3.0]


# -- experts -----------------------------------------------------------------------------------------------------------


class Restated(nn.Module):
    """SMILE in place of one linear layer, token by token."""

    def __init__(self, plain: nn.Linear, tuned: list[nn.Linear], rank: int, gate_rank: int, top_k: int) -> None:
        super().__init__()
        self.plain, self.top_k, self.experts = plain, top_k, []
        for one in tuned:
            u, s, v = torch.linalg.svd((one.weight - plain.weight).double(), full_matrices=False)
            low = (u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]).float()
            self.experts.append((low, one.bias - plain.bias, v[:gate_rank].float()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.plain(x)
        for place in torch.cartesian_prod(*(torch.arange(size) for size in x.shape[:-1])).reshape(-1, x.dim() - 1):
            token = x[tuple(place)]
            p = torch.stack([(gate @ token).norm() for _, _, gate in self.experts]).softmax(0)
            chosen = p.argsort(descending=True)[: self.top_k]
            for number in chosen:
                low, bias, _ = self.experts[int(number)]
                out[tuple(place)] += p[number] / p[chosen].sum() * (low @ token + bias)
        return out


def qkv_apart(block: Any) -> list[nn.Linear]:
    """The attention's fused projection as three layers."""
    fused = block.attn.qkv
    parts = [nn.Linear(24, 24) for _ in range(3)]
    with torch.no_grad():
        for number, part in enumerate(parts):
            part.weight.copy_(fused.weight[24 * number : 24 * number + 24])
            part.bias.copy_(fused.bias[24 * number : 24 * number + 24])
    return parts


class Three(nn.Module):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


@pytest.mark.parametrize(("rank", "gate_rank", "top_k"), [(4, 2, 1), (24, 5, 2)])
@torch.no_grad()
def test_smile(full: dict[str, Path], rank: int, gate_rank: int, top_k: int) -> None:
    expected, models = base(), [base(), base()]
    before, changes = task_vectors(full)
    for model, change in zip(models, changes, strict=True):
        model.load_state_dict({name: value + change[name] for name, value in before.items()})
    for number in range(2):
        block, others = expected.blocks[number], [model.blocks[number] for model in models]
        apart = [qkv_apart(one) for one in (block, *others)]
        block.attn.qkv = Three(
            [Restated(apart[0][part], [one[part] for one in apart[1:]], rank, gate_rank, top_k) for part in range(3)]
        )
        for owner, name in ((block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            theirs = [getattr(one.attn if name == "proj" else one.mlp, name) for one in others]
            setattr(owner, name, Restated(getattr(owner, name), theirs, rank, gate_rank, top_k))
    fused = vpeft.fuse(base(), full, f"smile(rank={rank}, gate_rank={gate_rank}, top_k={top_k})")
    features = expected(images(3))
    outputs = fused(images(3))
    for name, path in full.items():
        head = vpeft.load(base(), path).head
        assert head is not None
        torch.testing.assert_close(outputs[name], head(features), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_smile_of_low_rank_adapters_is_exact_and_stores_no_rank_in_vain(tmp_path: Path) -> None:
    path = tuned_on("a", vpeft.methods.LoRA(rank=2)).save(tmp_path / "a.safetensors")
    fused = vpeft.fuse(base(), {"a": path}, "smile(rank=8)")
    torch.testing.assert_close(fused(images())["a"], vpeft.load(base(), path).eval()(images()), atol=1e-5, rtol=1e-5)
    (method,) = fused.methods(FUSED)
    assert method.model_dump()["rank"] == 2
    assert method.model_dump()["places"] == tuple(f"blocks.{n}.attn.{part}" for n in range(2) for part in "qv")


@torch.no_grad()
def test_smile_of_all_experts_alike_is_task_arithmetic(full: dict[str, Path]) -> None:
    one = {"a": full["a"], "b": full["a"]}
    fused = vpeft.fuse(base(), one, "smile(rank=None, top_k=2, average_others=true)")
    expected = vpeft.load(base(), full["a"]).eval()(images())
    torch.testing.assert_close(fused(images())["a"], expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_that_changed_a_place_alone_is_its_only_expert(files: dict[str, Path]) -> None:
    fused = vpeft.fuse(base(), {"a": files["a"], "b": files["b"]}, "smile")
    method = fused.methods(FUSED)[0].model_dump()
    counts = dict(zip(method["places"], method["counts"], strict=True))
    assert counts["blocks.0.attn.q"] == 2  # LoRA and SSF
    assert counts["blocks.0.mlp.fc1"] == 1  # SSF alone


@torch.no_grad()
def test_wemoe(full: dict[str, Path]) -> None:
    before, changes = task_vectors(full)
    fused = vpeft.fuse(base(), full, "wemoe(steps=2, batch=4, lr=0.05)", data=data("ab"), seed=3)
    state = fused.adapter_state()
    merged = {name: value + 0.3 * sum(one[name] for one in changes) for name, value in before.items()}
    rows = []
    for pixels in images(3):  # an image at a time, with weights of its own
        model = base()
        model.load_state_dict(merged)
        for number, block in enumerate(model.blocks):
            keys = [f"blocks.{number}.mlp.{layer}" for layer in ("fc1", "fc2")]
            router = {
                key.split(".tap.steps.")[1]: state[key] for key in state if key.startswith(f"{keys[0]}.input.tap")
            }

            def mixed(module: nn.Module, given: tuple[Tensor], keys=keys, router=router) -> None:  # type: ignore[no-untyped-def]
                inner = torch.relu(given[0] @ router["0.weight"].T + router["0.bias"])
                weights = (inner @ router["2.weight"].T + router["2.bias"]).mean((0, 1))
                for key, layer in zip(keys, ("fc1", "fc2"), strict=True):
                    for kind in ("weight", "bias"):
                        value = before[f"{key}.{kind}"].clone()
                        for n, change in enumerate(changes):
                            value += weights[n] * change[f"{key}.{kind}"]
                        getattr(getattr(module, layer), kind).copy_(value)

            block.mlp.register_forward_pre_hook(mixed)
        rows.append(model(pixels[None]))
    features = torch.cat(rows)
    outputs = fused(images(3))
    for name, path in full.items():
        head = vpeft.load(base(), path).head
        assert head is not None
        torch.testing.assert_close(outputs[name], head(features), atol=1e-5, rtol=1e-5)


def test_routers_of_wemoe_learn_and_the_rest_does_not(full: dict[str, Path]) -> None:
    start = vpeft.fuse(base(), full, "wemoe(steps=0)", data=data("ab"), seed=3).adapter_state()
    after = vpeft.fuse(base(), full, "wemoe(steps=3, batch=4, lr=0.01)", data=data("ab"), seed=3).adapter_state()
    moved = {key for key in start if not torch.equal(start[key], after[key])}
    assert moved and all(".tap.steps." in key for key in moved)


# -- files, tasks and heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["averaging", "smile(rank=4, gate_rank=2)", "wemoe(steps=1, batch=4)"])
def test_a_saved_fusion_loads_and_answers_per_task(files: dict[str, Path], tmp_path: Path, how: str) -> None:
    model = base()
    untouched = weights_of(model)
    fused = vpeft.fuse(model, files, how, data=data(), out=tmp_path / "f.safetensors")
    expected = fused(images())
    again = vpeft.load(base(), tmp_path / "f.safetensors").eval()
    found = again(images())
    assert list(found) == list(files)
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        assert torch.equal(OneTask(again, name)(images()), value)
    scores = vpeft.evaluate(OneTask(again, "b"), data("b")["b"])
    assert scores.leading == "top1" and scores.count == 20
    fusion = read_manifest(tmp_path / "f.safetensors").extra["fusion"]
    assert fusion["how"] == make_way(how).name and list(fusion["of"]) == list(files)
    fused.detach()
    for name, value in weights_of(model).items():
        assert torch.equal(untouched[name], value), name


def test_full_models_and_their_files_fuse_as_adapters_do(full: dict[str, Path], tmp_path: Path) -> None:
    models: dict[str, Any] = {}
    for name, path in full.items():
        tuned = vpeft.load(base(), path)
        model = VisionTransformer(
            img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=CLASSES[name]
        )
        assert tuned.head is not None
        model.load_state_dict(
            {**weights_of(tuned.backbone), **{f"head.{k}": v for k, v in tuned.head.state_dict().items()}}
        )
        models[name] = model
    expected = fused_weights(full, "ties")
    assert_close(fused_weights(models, "ties"), expected)
    checkpoints = {name: tmp_path / f"{name}.pt" for name in models}
    for name, model in models.items():
        torch.save(model.state_dict(), checkpoints[name])
    fused = vpeft.fuse(base(), checkpoints, "ties")
    assert_close(values_of(fused), expected)
    torch.testing.assert_close(fused(images())["a"], vpeft.fuse(base(), full, "ties")(images())["a"])


def test_one_head_over_all_classes(files: dict[str, Path], tmp_path: Path) -> None:
    fused = vpeft.fuse(base(), files, "averaging", one_head=True, out=tmp_path / "f.safetensors")
    apart = vpeft.fuse(base(), files, "averaging")(images())
    torch.testing.assert_close(fused(images()), torch.cat(list(apart.values()), dim=1))
    assert fused.task.labels == tuple(f"{name}{number}" for name, count in CLASSES.items() for number in range(count))
    again = vpeft.load(base(), tmp_path / "f.safetensors")
    assert again.task.labels == fused.task.labels


def test_parts_are_named_as_shortly_as_can_be() -> None:
    model = base()
    names = {name for name, _ in model.named_parameters()}
    inside = {name for name in names if name.startswith("blocks.0.mlp")}
    assert whole_parts(model, {"cls_token", "blocks.1.attn.qkv.weight", *inside}) == (
        "blocks.0.mlp",
        "blocks.1.attn.qkv.weight",
        "cls_token",
    )


@torch.no_grad()
def test_routing_shares_count_each_token_once(full: dict[str, Path]) -> None:
    fused = vpeft.fuse(base(), full, "smile(rank=4, gate_rank=2)")
    found = routing_shares(fused, data("ab", count=5))
    assert found.tasks == ("a", "b") and len(found.places) == 12
    assert found.shares.shape == (12, 2, 2)
    torch.testing.assert_close(found.shares.sum(-1), torch.ones(12, 2))
    figure = found.picture()
    assert figure.axes[0].get_xlabel() == "task of the images"


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_adapters_of_different_bases_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    other = base()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    path = vpeft.tune(other, vpeft.methods.LoRA(), num_classes=2).save(
        tmp_path / "other.safetensors", labels=["x", "y"]
    )
    with pytest.raises(CannotFuse, match=r"a\.safetensors was made on .* and .*other\.safetensors on"):
        vpeft.fuse(base(), {"a": files["a"], "other": path})


def test_a_method_that_cannot_merge_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    path = tuned_on("d", vpeft.methods.VPTDeep(tokens=2)).save(tmp_path / "prompts.safetensors")
    with pytest.raises(CannotFuse, match=r"prompts\.safetensors \(vpt_deep\) cannot be fused\. .*insert_tokens"):
        vpeft.fuse(base(), {"a": files["a"], "d": path})


def test_shared_labels_matter_for_one_head_alone(files: dict[str, Path]) -> None:
    twice = {"a": files["a"], "again": files["a"]}
    assert set(vpeft.fuse(base(), twice, "averaging")(images())) == {"a", "again"}
    with pytest.raises(CannotFuse, match="'again' and 'a' both have the class 'a0' and 2 more"):
        vpeft.fuse(base(), twice, "averaging", one_head=True)


@pytest.mark.parametrize("how", [name for name, kind in all_ways().items() if kind.needs != "nothing"])
def test_a_task_without_images_is_named(files: dict[str, Path], how: str) -> None:
    with pytest.raises(NoImages, match=f"{how} looks at images of every task, and there are none of b, c"):
        vpeft.fuse(base(), files, how, data=data("a"))


def test_ways_and_options_that_do_not_exist() -> None:
    with pytest.raises(UnknownWay, match="Did you mean 'ties'"):
        make_way("tiess")
    with pytest.raises(BadWay, match="ties has no option 'densty'. Did you mean 'density'"):
        make_way("ties(densty=0.1)")
    with pytest.raises(BadWay, match=r"ties\.density = 2"):
        make_way("ties(density=2)")
    for kind in all_ways().values():
        assert kind.__module__ == f"vpeft.regimes.fusion.ways.{kind.name}" and kind.paper
        assert all(field.description for field in kind.model_fields.values()), kind.name


def test_other_wrong_inputs(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CannotFuse, match="nothing to fuse"):
        vpeft.fuse(base(), {})
    with pytest.raises(BadWay, match="2 numbers for 3 models"):
        vpeft.fuse(base(), files, "task_arithmetic(scales=[1.0, 2.0])")
    path = tuned_on("e", vpeft.methods.LinearProbe()).save(tmp_path / "e.safetensors")
    with pytest.raises(CannotFuse, match="None of these models changed anything"):
        vpeft.fuse(base(), {"e": path})
    path = vpeft.fuse(base(), files, "averaging").save(tmp_path / "f.safetensors")
    with pytest.raises(CannotFuse, match="has heads for several tasks already"):
        vpeft.fuse(base(), {"f": path})
    regression = vpeft.tune(base(), vpeft.methods.LoRA(), task=vpeft.get_task("regression")(labels=("x",)))
    path = regression.save(tmp_path / "r.safetensors")
    with pytest.raises(CannotFuse, match="'r' is of the task regression"):
        vpeft.fuse(base(), {"a": files["a"], "r": path}, "adamerging", data={**data("a"), "r": data("a")["a"]})
    alike = [
        tuned_on(name, vpeft.methods.LoRA()).save(tmp_path / f"{name}.safetensors", preprocessing={"mean": [mean]})
        for name, mean in (("a", 0.5), ("b", 0.4))
    ]
    with pytest.raises(CannotFuse, match=r"'a' and 'b' were trained on images .* \(mean\)"):
        vpeft.fuse(base(), alike, "averaging", out=tmp_path / "x.safetensors")
    plain = copy.deepcopy(base()).state_dict()
    torch.save(plain, tmp_path / "plain.pt")
    with pytest.raises(CannotFuse, match=r"plain\.pt is no adapter, .* has no classifier"):
        vpeft.fuse(base(), {"p": tmp_path / "plain.pt"})
    with pytest.raises(NoSuchTask, match="no task 'x'"):
        OneTask(vpeft.fuse(base(), files, "averaging"), "x")


def test_names_come_from_files_or_their_folders() -> None:
    assert names_of(["x/a.safetensors", "y/b-1.safetensors"]) == ["a", "b_1"]
    assert names_of(["x/adapter.safetensors", "y/adapter.safetensors"]) == ["x", "y"]
    with pytest.raises(CannotFuse, match="--names"):
        names_of(["x/adapter.safetensors", "x/adapter.safetensors"])


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for task, method in (("orientation", vpeft.methods.LoRA(rank=2)), ("handwriting", vpeft.methods.SSF())):
        labels = vpeft.open_data(vpeft.DataConfig(source=f"pocket/{task}")).labels
        model = vpeft.create_backbone("pocket_vit")
        tuned = vpeft.tune(model, method, task=Classification(labels=tuple(labels)), verify=False)
        with torch.no_grad():
            for _, value in tuned.trainable():
                value.add_(0.01 * torch.randn_like(value))
        stated = vpeft.Preprocessing.from_model(model).model_dump(mode="json")
        made.append(str(tuned.save(tmp_path / f"{task}.safetensors", preprocessing=stated)))
    out = str(tmp_path / "fused.safetensors")
    assert main(["fuse", *made, "--how", "regmean(images=4)", "--out", out]) == 1
    assert "there are none of orientation, handwriting" in capsys.readouterr().err
    sources = [f"--data={name}=pocket/{name}" for name in ("orientation", "handwriting")]
    assert main(["fuse", *made, "--how", "regmean(images=4)", "--out", out, *sources, "--device", "cpu"]) == 0
    assert main(["verify", out]) == 0
    capsys.readouterr()
    assert main(["evaluate", out, "--data", "pocket/handwriting", "--task", "handwriting", "--device", "cpu"]) == 0
    assert "1200 samples" in capsys.readouterr().out
    assert main(["evaluate", out, "--data", "pocket/handwriting", "--task", "digits"]) == 1
    assert "no task 'digits'" in capsys.readouterr().err
