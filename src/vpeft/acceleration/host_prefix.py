"""`frozen_prefix` for a host whose tower is frozen: compute what the encoder gives once per image, and play it back.

A decoder, a neck or heads of a host train, and the tower before them does not: SAM with a trained mask decoder, a DETR
with a trained decoder. Then the largest module that holds the tower and nothing that trains is run once for each image.
Afterwards the host runs as always, on the same inputs, and that module returns what it gave before. Of a host with two
towers whose features a head compares, it is the image tower, where nothing inside of it is edited.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.equivalence import TOLERANCE, TOLERANCE_16, PerturbedParameters
from vpeft.acceleration.frozen_prefix import all_modes
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.prefix_cache import SAMPLE, Situation
from vpeft.acceleration.prefix_store import Spec, Store, digest_of, mebibytes, room
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.backbones.host_parts import in_part
from vpeft.backbones.places import Place
from vpeft.batch import Batch, Sample, as_sample, run_model
from vpeft.batch import collate as stacked_batch
from vpeft.injection.outputs import tensors_in
from vpeft.injection.tuned_model import TunedModel
from vpeft.injection.weights_digest import weights_digest
from vpeft.method import Method

LOOKED_AT = 8
Run = Callable[[Any, Batch], Any]
Collate = Callable[[Sequence[Any]], Batch]


class _Reached(Exception):
    """Ends a forward pass once the frozen module has run, because nothing after it is needed."""


class PlayedBack:
    """Mixin of the frozen module in a replay: it returns what it gave for these images before."""

    vpeft_given: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.vpeft_given


class FrozenPart:
    """The frozen module of a host: what it gives, taken apart into tensors, and put together again.

    Attributes:
        name: the module's name in the host.
        module: the module.
    """

    def __init__(self, tuned: TunedModel, name: str, patches: Patches) -> None:
        self.tuned, self.name = tuned, name
        self._specs: list[Spec] = []
        self._constants: list[Any] = []
        self._tree: TreeSpec | None = None
        self.module = tuned.backbone.get_submodule(name)
        self._patches = patches

    @torch.no_grad()
    def run(self, batch: Batch, run: Run) -> Any:
        """What the module gives for a batch that `run` puts through the model; the host stops behind the module."""
        seen: list[Any] = []

        def stop(_: nn.Module, args: Any, out: Any) -> None:
            seen.append(out)
            raise _Reached

        handle = self.module.register_forward_hook(stop)
        try:
            run(self.tuned, batch)
        except _Reached:
            return seen[0]
        finally:
            handle.remove()
        raise NotApplicable(f"the host does not run {self.name}")

    def learn(self, one: Any, count_one: int, other: Any, count_other: int) -> list[Spec]:
        """Find out which tensors have a row for each image, from what the module gave for two batches."""
        leaves, self._tree = tree_flatten(one)
        others, tree = tree_flatten(other)
        if tree != self._tree:
            raise NotApplicable(f"what {self.name} gives is of another form for other images")
        self._specs, self._constants = [], []
        for leaf, twin in zip(leaves, others, strict=True):
            rows = isinstance(leaf, Tensor) and leaf.dim() > 0 and (len(leaf), len(twin)) == (count_one, count_other)
            if rows:
                if leaf.shape[1:] != twin.shape[1:]:
                    raise NotApplicable("the images are not all of one size when they enter the frozen part")
                self._specs.append(Spec(tuple(leaf.shape[1:]), leaf.dtype))
                self._constants.append(None)
            elif _equal(leaf, twin):
                self._constants.append((leaf,))
            else:
                raise NotApplicable(f"a tensor that {self.name} gives does not have one row for each image")
        if not self._specs:
            raise NotApplicable(f"what {self.name} gives does not depend on the images")
        return self._specs

    def rows(self, out: Any) -> list[Tensor]:
        """The tensors of what the module gave that have a row for each image."""
        leaves, tree = tree_flatten(out)
        if tree != self._tree:
            raise NotApplicable(f"what {self.name} gives is of another form for other images")
        found = [leaf for leaf, constant in zip(leaves, self._constants, strict=True) if constant is None]
        if any(tuple(leaf.shape[1:]) != spec.shape for leaf, spec in zip(found, self._specs, strict=True)):
            raise NotApplicable("the images are not all of one size when they enter the frozen part")
        return found

    @contextmanager
    def giving(self, rows: Sequence[Tensor]) -> Iterator[None]:
        """Within it, the module returns these rows in the form of what it gives."""
        assert self._tree is not None
        left = iter(rows)
        leaves = [next(left) if constant is None else constant[0] for constant in self._constants]
        # its class changes for the replay only: transformers looks up by it which hidden states a module can give
        before = len(self._patches)
        self._patches.stand_in(self.module, PlayedBack, vpeft_given=tree_unflatten(leaves, self._tree))
        try:
            yield
        finally:
            self._patches.undo(before)


class NamedSamples:
    """A data set whose samples have the name of their row in the cache as their id."""

    def __init__(self, images: Any, first: int) -> None:
        self.images, self.first = images, first
        self.labels = getattr(images, "labels", None)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Sample:
        sample = as_sample(self.images[index])
        return Sample(sample.input, sample.target, row_name(self.first + index))


def row_name(number: int) -> str:
    """The id of a sample that stands in this row of the cache."""
    return f"row {number}"


class CachedHost:
    """The host on cached outputs of its frozen part: batches whose ids name rows -> the host's outputs."""

    takes_batch = True

    def __init__(
        self, tuned: TunedModel, part: FrozenPart, store: Store, train: NamedSamples, val: NamedSamples | None
    ) -> None:
        self.tuned, self.part, self.store = tuned, part, store
        self.train, self.val = train, val

    @property
    def scoring(self) -> CachedHost:
        """The model for the validation images."""
        return self

    @property
    def training(self) -> bool:
        """Whether the host is in training mode."""
        return self.tuned.training

    @property
    def backbone(self) -> nn.Module:
        """The host itself."""
        return self.tuned.backbone

    @property
    def host_alone(self) -> nn.Module | None:
        """The host, which runs with its own head."""
        return self.tuned.host_alone

    def modules(self) -> Iterator[nn.Module]:
        """The modules of the tuned model."""
        return self.tuned.modules()

    def images(self, inputs: Any) -> Any:
        """The inputs of a batch, which are those of the plain model too."""
        return inputs

    def __call__(self, *inputs: Any, batch: Batch | None = None, **named: Any) -> Any:
        if batch is None or len(batch.ids) != len(batch):
            raise NotApplicable("the task's batches do not keep the ids of their samples")
        numbers = torch.tensor([int(name.removeprefix("row ")) for name in batch.ids])
        device = next(self.tuned.parameters()).device
        with self.part.giving([row.to(device, non_blocking=True) for row in self.store.rows(numbers)]):
            return self.tuned(*inputs, batch=batch, **named)


def build(tuned: TunedModel, patches: Patches, situation: Situation) -> tuple[CachedHost, str]:
    """Fill or find the cache and test it on a sample; return the host on cached outputs and a line of text.

    Raises:
        NotApplicable: with the reason; the caller undoes the patches.
    """
    _require_useful(tuned, situation)
    collate: Collate = stacked_batch if situation.task is None else situation.task.collate
    run: Run = run_model if situation.task is None else situation.task.run
    device = next(tuned.parameters()).device
    part = FrozenPart(tuned, _frozen_module(tuned, situation, collate, run), patches)
    sets = [NamedSamples(situation.train, 0)]
    if situation.val is not None and why_not_the_same(situation.val) is None:
        sets.append(NamedSamples(situation.val, len(situation.train)))

    def given(samples: Sequence[Sample]) -> Any:
        try:
            with situation.autocast():
                return part.run(collate(samples).to(device), run)
        except NotApplicable:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            first = str(error).strip().partition("\n")[0]
            raise NotApplicable(f"images far apart in the data set do not go into one batch ({first})") from None

    with PerturbedParameters(tuned):
        ends = [sets[0][0], sets[0][len(sets[0]) - 1]]
        first = given(ends)
        specs = part.learn(first, 2, given(ends[:1]), 1)
        found = [part.rows(first)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            found.append(part.rows(given(ends)))
        if not all(torch.equal(one, other) for one, other in zip(*found, strict=True)):
            raise NotApplicable("the frozen part gives different numbers each time it runs")
    each = sum(spec.bytes for spec in specs)
    keeps = situation.folder is not None and bool(situation.identity)
    allowed, where = room(situation.gib, situation.folder if keeps else None)
    if each * sum(map(len, sets)) > allowed and each * len(sets[0]) <= allowed:
        sets = sets[:1]
    count = sum(map(len, sets))
    if each * count > allowed:
        raise NotApplicable(
            f"cached outputs of {part.name} take {mebibytes(each * count)} ({each / 2**20:.2f} MiB an image), and"
            f" {mebibytes(allowed)} {where}; raise prefix_gib, or give prefix_folder"
        )
    store, ready = _store(tuned, part, situation, specs, count, digest_of(found[0]), keeps)
    try:
        if not ready:
            with PerturbedParameters(tuned):
                _fill(part, store, sets, situation.batch, given)
        cached = CachedHost(tuned, part, store, sets[0], sets[1] if len(sets) > 1 else None)
        worst = _prove(cached, situation, collate, run, device)
        store.finish()
    except BaseException:
        store.discard()
        raise
    equal = "the same bits on a sample" if worst == 0 else f"equal on a sample to {worst:.0e}"
    place = f"{'found' if ready else 'kept'} in {situation.folder if keeps else 'memory'}"
    return cached, f"what {part.name} gives for {count} images, {mebibytes(store.bytes)} {place}, {equal}"


def _require_useful(tuned: TunedModel, situation: Situation) -> None:
    if situation.epochs < 2:
        raise NotApplicable("in a single epoch nothing is computed twice")
    if situation.mixes is not None:
        raise NotApplicable(situation.mixes)
    if len(situation.train) < 2:
        raise NotApplicable("there is only one image")
    if any(type(method).advance is not Method.advance or method.follows_data for method in tuned.methods()):
        raise NotApplicable("the method changes the model during training")
    if any(_inside(tuned, edit) for edit in tuned.adapter().edits):
        raise NotApplicable("trained places are inside the tower, so nothing of the host is frozen before them")
    changing = why_not_the_same(situation.train)
    if changing is not None:
        raise NotApplicable(changing)


def _inside(tuned: TunedModel, edit: Edit) -> bool:
    """Whether an edit acts in the tower whose outputs would be kept, or reads what that computes on its way."""
    if not tuned.reads_towers:
        return edit.layer is not None and not in_part(tuned.description, edit.place)
    name, first = next(iter(tuned.description.towers.items()))
    behind = (first.outlet, first.logits)
    places = [edit.place] if edit.layer is not None else []
    places += [source for source in edit.reads if isinstance(source, Place)]
    return any(place.name.startswith(f"{name}.") and place not in behind for place in places)


def _frozen_module(tuned: TunedModel, situation: Situation, collate: Collate, run: Run) -> str:
    """The name of the largest module that holds the tower, runs once, and in which nothing trains or draws."""
    host = tuned.backbone
    towers = tuned.description.towers
    if len(towers) > 1 and not tuned.reads_towers:
        raise NotApplicable("the host has several towers")
    path = _path(next(iter(towers.values())), host)
    edited = {
        id(point.module)
        for edit in tuned.adapter().edits
        for point in (edit.place.enter, edit.place.exit)
        if edit.layer is not None and point is not None
    }
    steps = path.split(".") if path else []
    reason = "trained places are inside the tower, so nothing of the host is frozen before them"
    for end in range(1, len(steps) + 1):
        name = ".".join(steps[:end])
        module = host.get_submodule(name)
        if any(parameter.requires_grad for parameter in module.parameters()):
            continue
        if any(id(inner) in edited for inner in module.modules()):
            continue
        drawing = _drawing_layer(module)
        if drawing is not None:
            reason = f"{name}.{drawing} is random or gathers statistics, and it is before the trained places"
            continue
        if _runs_once(tuned, module, situation, collate, run):
            return name
        reason = f"the host does not run {name} once in each pass"
    raise NotApplicable(reason)


def _path(tower: Backbone, host: nn.Module) -> str:
    """The name of the tower in its host; of what holds all its blocks where the host is described as the tower."""
    names: dict[int, str] = {id(module): name for name, module in host.named_modules()}
    if tower.module is not host:
        return names[id(tower.module)]
    blocks = [names[id(block.exit.module)].split(".") for block in tower.blocks if block.exit is not None]
    shared: list[tuple[str, ...]] = list(
        itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*blocks, strict=False))
    )
    return ".".join(steps[0] for steps in shared)


def _drawing_layer(top: nn.Module) -> str | None:
    """The name of a layer that is random or gathers statistics in the present mode; or None."""
    modules: list[tuple[str, Any]] = list(top.named_modules())
    for name, module in modules:
        if not module.training:
            continue
        rate = getattr(module, "drop_prob", getattr(module, "p", 0.0)) if "Drop" in type(module).__name__ else 0.0
        if (isinstance(rate, float) and rate > 0) or isinstance(module, _BatchNorm):
            return name
    return None


@torch.no_grad()
def _runs_once(tuned: TunedModel, module: nn.Module, situation: Situation, collate: Collate, run: Run) -> bool:
    calls: list[int] = []
    handle = module.register_forward_hook(lambda _, args, out: calls.append(1))
    device = next(tuned.parameters()).device
    try:
        with PerturbedParameters(tuned), torch.random.fork_rng(devices=[]), situation.autocast():
            run(tuned, collate([as_sample(situation.train[0])]).to(device))
    finally:
        handle.remove()
    return len(calls) == 1


def _store(
    tuned: TunedModel, part: FrozenPart, situation: Situation, specs: Sequence[Spec], count: int, mark: str, keeps: bool
) -> tuple[Store, bool]:
    if situation.folder is None or not keeps:
        return Store.in_memory(count, specs), False
    facts = {
        "weights": weights_digest(tuned.description, tuned),
        "cut": part.name,
        "mark": mark,
        "precision": situation.precision,
        "device": next(tuned.parameters()).device.type,
        "torch": str(torch.__version__),
        "images": dict(situation.identity),
    }
    found = Store.find(situation.folder, count, specs, facts)
    if found is not None:
        return found, True
    return Store.on_disk(situation.folder, count, specs, facts), False


def _fill(
    part: FrozenPart,
    store: Store,
    sets: Sequence[NamedSamples],
    batch: int,
    given: Callable[[Sequence[Sample]], Any],
) -> None:
    for images in sets:
        for start in range(0, len(images), batch):
            some = [images[i] for i in range(start, min(start + batch, len(images)))]
            store.put(images.first + start, part.rows(given(some)))


def _prove(cached: CachedHost, situation: Situation, collate: Collate, run: Run, device: torch.device) -> float:
    """Return the largest relative difference of the host and the host on the cache, in training and evaluation mode.

    Raises:
        NotApplicable: the difference is too large.
    """
    tuned, worst = cached.tuned, 0.0
    tolerance = TOLERANCE if situation.precision == "fp32" else TOLERANCE_16
    for images in (cached.train, *([cached.val] if cached.val is not None else [])):
        count = len(images)
        numbers = sorted({round(i * (count - 1) / (SAMPLE - 1)) for i in range(SAMPLE)})
        batch = collate([images[number] for number in numbers]).to(device)
        with PerturbedParameters(tuned), all_modes(tuned), torch.no_grad(), situation.autocast():
            for training in (True, False):
                tuned.train(training)
                out = []
                for model in (tuned, cached):
                    with torch.random.fork_rng(devices=[]):
                        torch.manual_seed(0)
                        out.append([tensor.float() for tensor in tensors_in(run(model, batch))])
                worst = max(worst, _difference(*out))
                if not worst <= tolerance:
                    raise NotApplicable(f"from the cache, the outputs for a sample differ by {worst:.0e} of their size")
    return worst


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.numel() and not torch.equal(a, b)]
    return max((float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs), default=0.0)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def why_not_the_same(images: Any) -> str | None:
    """Return why the inputs of `images[i]` may differ from one reading to the next, or None if they do not.

    A few samples are read twice, with different seeds and epochs: they must be equal, and no random generator of torch
    may have changed.
    """
    if getattr(images, "told", None) is not None:
        return "the images have several views"
    count = len(images)
    looked = sorted({round(i * (count - 1) / max(1, LOOKED_AT - 1)) for i in range(min(LOOKED_AT, count))})
    tell = getattr(images, "set_epoch", None)
    found: list[list[list[Tensor]]] = []
    with torch.random.fork_rng(devices=[]):
        for seed in (11, 12):
            if callable(tell):
                tell(seed)
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found.append([[tensor.clone() for tensor in _inputs(images[index])] for index in looked])
            if not torch.equal(before, torch.get_rng_state()):
                return "reading an image draws random numbers"
    same = all(
        len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(*found, strict=True)
    )
    return None if same else "an image read twice is not the same"


def _inputs(item: Any) -> list[Tensor]:
    """Every tensor among a sample's inputs."""
    leaves, _ = tree_flatten(as_sample(item).input)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
