"""What must hold for every method on every backbone: one function for each promise.

A check takes a `Cell` (a method and a family that has its places) and raises AssertionError where the promise is
broken. A method declares a check that it cannot pass in `Method.exceptions`, with the reason and the way in which it
fails; `hold` runs a check and asks for exactly that failure.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vpeft
from tests.families import EVERY
from tests.models import ANY_SIZE, images_for, library_features
from tests.unit.injection import concurrency
from vpeft.injection.merge import CannotMerge
from vpeft.injection.operations import NothingRead
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import KnownFailure, Method
from vpeft.methods import LoRA

CLASSES = 5


@dataclass(frozen=True)
class Cell:
    """One method on one family."""

    method: Method
    family: str

    def model(self) -> nn.Module:
        """The tiny backbone, with the same weights at each call."""
        return copy.deepcopy(self.plain())

    def plain(self) -> nn.Module:
        """The same, one for all who only look at its tensors and places: some models keep what a forward pass makes."""
        return _made(self.family)

    def tuned(self, model: nn.Module | None = None, *more: Method, verify: bool = False) -> TunedModel:
        """The method on the tiny model, with a head for five classes, in eval mode."""
        model = model or self.model()
        torch.manual_seed(3)
        return vpeft.tune(model, self.method, *more, num_classes=CLASSES, verify=verify, show=False).eval()

    def trained(self) -> TunedModel:
        """The same after two optimiser steps, so that nothing is at its initial value."""
        return self._trained()[0]

    def _trained(self) -> tuple[TunedModel, dict[str, bool]]:
        tuned = self.tuned()
        return tuned, two_steps(tuned, self.images())

    def learnt(self) -> dict[str, bool]:
        """For each tensor that trains, whether the two steps of the settled model gave it a gradient."""
        return _settled(self)[1]

    def settled(self) -> TunedModel:
        """A trained model that several checks share: who takes it leaves weights, hooks and modes as they are."""
        tuned = _settled(self)[0]
        tuned.zero_grad()
        return tuned

    def spent(self) -> TunedModel:
        """The settled model for a check that takes it apart; the next check that asks gets another one."""
        tuned = self.settled()
        _settled.cache_clear()
        return tuned

    def twin(self) -> TunedModel:
        """A copy of the settled model, for a check that changes it."""
        return copy.deepcopy(self.settled())

    def images(self, batch: int = 2) -> Tensor:
        """The same batch at each call."""
        torch.manual_seed(0)
        return _images(self.family, batch).clone()


@cache
def _made(family: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EVERY[family]()


@cache
def _images(family: str, batch: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return images_for(_made(family), batch)


@lru_cache(maxsize=1)
def _settled(cell: Cell) -> tuple[TunedModel, dict[str, bool]]:
    return cell._trained()


def two_steps(tuned: TunedModel, images: Tensor) -> dict[str, bool]:
    """Two steps of Adam; says for each trained tensor whether it received a gradient in either."""
    tuned.prepare([(images, torch.arange(images.shape[0]) % CLASSES)])
    parameters = dict(tuned.trainable())
    optimizer = torch.optim.Adam(parameters.values(), lr=0.02)
    live = dict.fromkeys(parameters, False)
    target = torch.arange(images.shape[0]) % CLASSES
    for _ in range(2):
        loss = nn.functional.cross_entropy(tuned(images), target)
        penalty = tuned.penalty()
        if penalty is not None:
            loss = loss + penalty
        optimizer.zero_grad()
        loss.backward()
        for key, parameter in parameters.items():
            live[key] |= parameter.grad is not None and bool(parameter.grad.any())
        optimizer.step()
    return live


def hold(check: Callable[[Cell], None], cell: Cell) -> KnownFailure | None:
    """Run a check; where the method declares that it fails, it must fail as declared. Returns that declaration."""
    declared = cell.method.exceptions.get(check.__name__)
    if declared is None:
        check(cell)
        return None
    try:
        check(cell)
    except Exception as error:
        if declared.explains(error):
            return declared
        raise AssertionError(
            f"{cell.method.name} declares that {check.__name__} fails with {declared.raises.__name__} matching"
            f" {declared.match!r}, but it failed with {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(
        f"{cell.method.name} declares that {check.__name__} fails, but it passes: delete the exception."
    )


def starts_as_promised(cell: Cell) -> None:
    """tune() proves liveness and, where promised, that step 0 is the frozen model; here it is computed once more."""
    tuned = cell.tuned(verify=True)
    plain = library_features(cell.model(), cell.images())
    features = tuned.features(cell.images())
    close = features.shape == plain.shape and torch.allclose(features, plain, atol=1e-5, rtol=1e-5)
    assert close or not cell.method.starts_as_identity


def every_tensor_learns(cell: Cell) -> None:
    """Each trained tensor gets a gradient within two steps, or is declared dormant with a reason."""
    live = cell.learnt()
    dormant = {
        f"{prefix}.{key}" if prefix else key
        for prefix, module in cell.settled().adapter().named_modules()
        for key in getattr(module, "dormant", {})
    }
    dead = [key for key, value in live.items() if not value and key not in dormant]
    assert not dead, f"no gradient: {dead}"


def backbone_is_untouched(cell: Cell) -> None:
    """After two steps every frozen tensor is bit by bit what it was, and no key has moved."""
    before, tuned = cell.plain().state_dict(), cell.settled()
    assert list(tuned.backbone.state_dict()) == list(before)
    own = {id(parameter) for _, parameter in tuned.trainable()}
    frozen = {key for key, value in tuned.backbone.named_parameters(remove_duplicate=False) if id(value) not in own}
    changed = [
        key for key, value in tuned.backbone.state_dict().items() if key in frozen and not value.equal(before[key])
    ]
    assert not changed, changed


def detach_is_exact(cell: Cell) -> None:
    """Detaching gives the original back: tensors, keys, classes, outputs; no hook is left."""
    tuned, plain = cell.spent(), cell.model()
    back = tuned.detach("default")
    state = plain.state_dict()
    assert list(back.state_dict()) == list(state)
    assert all(value.equal(state[key]) for key, value in back.state_dict().items())
    for module, twin in zip(back.modules(), plain.modules(), strict=True):
        assert type(module) is type(twin), f"{type(module).__name__} is left behind"
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert set(module.__dict__) == set(twin.__dict__)
    assert all(a.requires_grad == b.requires_grad for a, b in zip(back.parameters(), plain.parameters(), strict=True))
    assert torch.equal(library_features(back, cell.images()), library_features(plain, cell.images()))


def reloads_exactly(cell: Cell) -> None:
    """A saved adapter on a fresh backbone gives the same outputs, bit by bit."""
    tuned = cell.settled()
    with TemporaryDirectory() as folder:
        path = tuned.save(Path(folder) / "a.safetensors", labels=list("abcde"))
        base = cell.model()
        if not cell.method.restorable:
            base.load_state_dict(cell.model().state_dict())
        again = vpeft.load(base, path).eval()
    assert torch.equal(again(cell.images()), tuned(cell.images()))
    assert again.methods() == tuned.methods()


def merges_or_says_why(cell: Cell) -> None:
    """Merged equals unmerged to 1e-5 and unmerging is bit-exact; or every edit that cannot merge has a reason."""
    tuned = cell.twin()
    before = tuned(cell.images())
    weights = {key: value.clone() for key, value in tuned.backbone.state_dict().items()}
    if not tuned.plan().mergeable:
        assert all(row.unmergeable != "" for row in tuned.plan().rows)
        with pytest.raises(CannotMerge, match="cannot be folded into the weights"):
            tuned.merge()
        assert torch.equal(tuned(cell.images()), before)
        return
    tuned.merge()
    merged = tuned(cell.images())
    assert (merged - before).abs().max() <= 1e-5 * before.abs().max().clamp(min=1.0), (merged - before).abs().max()
    tuned.unmerge()
    assert all(value.equal(weights[key]) for key, value in tuned.backbone.state_dict().items())
    assert torch.equal(tuned(cell.images()), before)


def copies_are_independent(cell: Cell) -> None:
    """A deep copy gives the same outputs, and training it leaves the original alone."""
    tuned = cell.settled()
    before = tuned(cell.images())
    twin = copy.deepcopy(tuned)
    assert torch.equal(twin(cell.images()), before)
    two_steps(twin, cell.images())
    assert torch.equal(tuned(cell.images()), before)
    assert not torch.equal(twin(cell.images()), before)
    if cell.method.restorable:
        plain = twin.detach("default")
        assert torch.equal(library_features(plain, cell.images()), library_features(cell.model(), cell.images()))
        assert torch.equal(tuned(cell.images()), before)


def pickles(cell: Cell) -> None:
    """A pickled model gives the same outputs."""
    tuned = cell.settled()
    again = pickle.loads(pickle.dumps(tuned))
    assert torch.equal(again(cell.images()), tuned(cell.images()))


def companion(cell: Cell) -> LoRA:
    """A second method, on the first layer of each MLP, or on all layers where a block has no such layer."""
    fits = all(block.has("mlp.fc1") for block in vpeft.describe(cell.plain()).blocks)
    return LoRA(rank=2, targets=("fc1",) if fits else ("all",))


def stacks(cell: Cell) -> None:
    """Together with LoRA under one name, both learn."""
    tuned = cell.tuned(None, companion(cell))
    live = two_steps(tuned, cell.images())
    second = tuned.adapter().edits[-1].layer
    assert second is not None and [live[key] for key, p in tuned.trainable() if p is second.B] == [True]


def lives_beside_others(cell: Cell) -> None:
    """Two adapters side by side: each gives what it gives alone, whichever was on before."""
    tuned = cell.twin()
    alone = tuned(cell.images())
    tuned.attach(companion(cell), name="other", num_classes=3)
    other = tuned(cell.images())
    assert other.shape[-1] == 3
    with tuned.enable("default"):
        assert torch.equal(tuned(cell.images()), alone)
    assert torch.equal(tuned(cell.images()), other)
    with tuned.disable():
        if cell.method.restorable:
            # frozen like this one: torch's attention takes another kernel where nothing needs a gradient
            plain = cell.model().requires_grad_(False)
            assert torch.equal(tuned.features(cell.images()), library_features(plain, cell.images()))


def shares_a_batch(cell: Cell) -> None:
    """In a batch whose images go through different adapters, each gets what its adapter alone gives it."""
    tuned = cell.twin()
    if cell.method.restorable:
        tuned.attach(cell.method, name="twin", num_classes=CLASSES)
    tuned.attach(companion(cell), name="other", num_classes=CLASSES)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in tuned.adapters:
            for _, parameter in tuned.trainable(name):
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    tuned.eval()
    images, names = cell.images(5), [name for name in ("other", "twin", "default") if name in tuned.adapters]
    names = (names * 5)[:5]
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            rows = []
            for row, name in enumerate(names):
                with tuned.enable(name):
                    rows.append(tuned(images[row : row + 1]))
            alone = torch.cat(rows)
            with tuned.enable(*names):
                mixed = tuned(images)
        assert torch.allclose(mixed, alone, atol=1e-4 * float(alone.detach().abs().max())), (mixed - alone).abs().max()


def ignores_neighbours(cell: Cell) -> None:
    """A sample's output does not depend on the rest of its batch."""
    tuned = cell.settled()
    images = cell.images(3)
    together, alone = tuned(images)[:1], tuned(images[:1])
    assert torch.allclose(together, alone, atol=1e-5, rtol=1e-5), (together - alone).abs().max()


def takes_another_size(cell: Cell) -> None:
    """One attached method takes images of two sizes in turn: the second trains the same tensors, and what the first
    gives does not change by it. On those families whose models can be made for images of any size."""
    make, sizes = ANY_SIZE[cell.family]
    torch.manual_seed(0)
    tuned = cell.tuned(make())
    generator = torch.Generator().manual_seed(1)
    small, large = (torch.randn(2, 3, *size, generator=generator) for size in sizes)
    two_steps(tuned, small)
    reached = []
    before = tuned(small)
    for images in (small, large):
        tuned.zero_grad()
        out = tuned(images)
        assert out.shape == (2, CLASSES) and out.isfinite().all()
        out.square().sum().backward()
        reached.append({key for key, parameter in tuned.trainable() if parameter.grad is not None})
    assert reached[0] == reached[1], reached[0] ^ reached[1]
    assert torch.equal(tuned(small), before)


def checkpoint_blocks(tuned: TunedModel) -> None:
    """Recompute each block in the backward pass: by the library's own switch, or by hand where it has none."""
    for switch in ("set_grad_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(tuned.backbone, switch) and getattr(tuned.backbone, "supports_gradient_checkpointing", True):
            try:
                getattr(tuned.backbone, switch)()
            except AssertionError:  # timm's way to say that a net has no such option
                continue
            return
    for block in tuned.description.blocks:
        assert block.exit is not None
        module = block.exit.module
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]


def survives_checkpointing(cell: Cell) -> None:
    """Activation checkpointing gives equal gradients, or is refused by name."""
    grads = []
    for checkpointed in (False, True):
        tuned = cell.twin()
        if checkpointed:
            checkpoint_blocks(tuned)
        tuned.train()
        for module in tuned.modules():
            if isinstance(module, (nn.Dropout, nn.modules.batchnorm._BatchNorm)):
                module.eval()
        parameters = dict(tuned.trainable())
        for parameter in parameters.values():
            parameter.grad = None
        torch.manual_seed(0)
        try:
            tuned(cell.images()).square().sum().backward()
        except NothingRead:
            if not checkpointed:
                raise
            return
        grads.append({key: p.grad for key, p in parameters.items()})
    for key, expected in grads[0].items():
        found = grads[1][key]
        assert (expected is None) == (found is None), key
        if expected is not None and found is not None:
            assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max() + 1e-6)), key


def runs_in_bfloat16(cell: Cell) -> None:
    """Under autocast a step gives finite gradients."""
    tuned = cell.settled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tuned(cell.images()).float().square().mean()
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for _, p in tuned.trainable())


def plan_tells_the_truth(cell: Cell) -> None:
    """Parameter counts are those of the live tensors, and gradients reach as far back as the plan says."""
    tuned = cell.settled()
    plan = tuned.plan()
    numbers = [p.numel() for key, p in tuned.trainable() if not key.startswith("head.")]
    assert plan.trainable == sum(numbers) == sum(row.parameters for row in plan.rows)
    assert plan.trainable_with_head == sum(p.numel() for _, p in tuned.trainable())
    seen: list[bool] = []
    handles = [
        block.exit.module.register_forward_hook(
            lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple) else out).requires_grad)
        )
        for block in tuned.description.blocks
        if block.exit is not None
    ]
    tuned(cell.images())
    for handle in handles:
        handle.remove()
    seen = seen[-len(handles) :]  # a method that asks for the frozen model's own feature runs that before
    first = seen.index(True) if any(seen) else None
    expected = "none" if first is None else "full" if first == 0 else f"from block {first}"
    assert plan.reach == expected, f"the plan says {plan.reach}, the graph {expected}"


def traces_whole(cell: Cell) -> None:
    """torch.compile takes the whole model as one graph and gives equal outputs."""
    tuned = cell.trained()
    before = tuned(cell.images())
    torch.compiler.reset()
    whole = torch.compile(tuned.forward, fullgraph=True, backend="eager")
    assert torch.allclose(whole(cell.images()), before, atol=1e-5, rtol=1e-5)


def exports(cell: Cell) -> None:
    """torch.export takes the model and gives equal outputs."""
    tuned = cell.trained()
    before = tuned(cell.images())
    program = torch.export.export(tuned, (cell.images(),), strict=False)
    assert torch.allclose(program.module()(cell.images()), before, atol=1e-5, rtol=1e-5)


def threads(cell: Cell) -> None:
    """Four threads, and two asyncio tasks, use one model with two adapters; each gets the answers of its adapter."""

    def two_adapters() -> TunedModel:
        tuned = cell.trained()
        second = cell.method if cell.method.restorable else companion(cell)
        tuned.attach(second, name="second", num_classes=CLASSES)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name in tuned.adapters:
                for _, parameter in tuned.trainable(name):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return tuned.eval()

    concurrency.threads(two_adapters, [cell.images(), 1.0 - cell.images()], rounds=10)


FAST: tuple[Callable[[Cell], None], ...] = (
    starts_as_promised,
    every_tensor_learns,
    backbone_is_untouched,
    reloads_exactly,
    merges_or_says_why,
    copies_are_independent,
    pickles,
    stacks,
    lives_beside_others,
    shares_a_batch,
    ignores_neighbours,
    survives_checkpointing,
    runs_in_bfloat16,
    takes_another_size,
    plan_tells_the_truth,
    detach_is_exact,
)
SLOW: tuple[Callable[[Cell], None], ...] = (traces_whole, exports, threads)
# What depends on the backbone as much as on the method: run in the fast tests on every family
OF_FAMILIES: tuple[Callable[[Cell], None], ...] = (
    starts_as_promised,
    every_tensor_learns,
    backbone_is_untouched,
    reloads_exactly,
    merges_or_says_why,
    survives_checkpointing,
    plan_tells_the_truth,
    detach_is_exact,
)
