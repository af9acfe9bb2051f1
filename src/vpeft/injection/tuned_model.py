"""A backbone, untouched, and the adapters that act on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.features import Feature, Features
from ..errors import nearest
from ..head import Head
from ..method import Method
from .adapter import Adapter, AdapterError, edits_of, require_equal_shapes
from .carry_out import carry_out, read_for_head, sequence_for_head
from .enabled import Enabled, beside_no_pass
from .forward_pass import Choice, ForwardPass, Within
from .heads import HasHead, HeadLike, feature_width, made_head, reads_of
from .hooks import Wiring
from .merge import Merged, merge_edits
from .placed import MethodLike, Placed, placed_methods, require_on_host_path
from .routed import Routing
from .run_time_grid import images_size
from .statistics import hold_still
from .switch import Shares

if TYPE_CHECKING:
    from ..batch import Batch
    from .adapter_file import Manifest
    from .plan import Plan
    from .verify import Report


class TunedModel(nn.Module):
    """Two children: `backbone`, whose keys never move, and `adapters.<name>.<place>.<verb>`.

    `backbone` is the host, where the described tower lives in one. Calling it gives logits (B, classes) of the active
    adapter's head; without a head of its own, what the host's own forward gives, or the backbone's own classifier.
    `repr` is the plan.

    Several threads and asyncio tasks may call it at the same time. What belongs to one forward pass lives in a context
    variable, `with enable` switches for the present thread or task alone, and `enable` as a statement for everybody.
    Passes of adapters that put tensors of their own into the backbone (unfrozen, moving statistics, merged) wait for
    passes that need others there; attach, detach, merge, unmerge and verify wait for the passes of other threads. While
    blocks are compiled, one pass runs at a time. A call of the backbone itself is seen by none of these locks.
    """

    backbone: nn.Module
    adapters: nn.ModuleDict

    def __init__(self, description: Backbone) -> None:
        super().__init__()
        self.backbone = description.root
        self.adapters = nn.ModuleDict()
        self.description = description
        self.manifest: Manifest | None = None
        self._methods: dict[str, tuple[Placed, ...]] = {}
        self._wiring = Wiring()
        self._merged: dict[str, Merged] = {}
        self._routing = Routing()
        self._rewritten = 0  # sets of changes that accelerations made for the adapter that is on
        self._compiled = False
        self.origin: str | None = None  # digest of the weights, kept once an adapter trains them in place
        self._unproved: set[str] = set()  # adapters that a host has not run yet
        self.quantised: str | None = None  # how the frozen linear maps were rounded, by `quantise`
        self._flags = [parameter.requires_grad for parameter in self.backbone.parameters()]
        self.backbone.requires_grad_(False)
        self.training = self.backbone.training  # evaluates or trains as the given model did

    # -- attach and detach ------------------------------------------------------------------------------------------

    @beside_no_pass
    def attach(
        self,
        *methods: MethodLike,
        name: str = "default",
        num_classes: int | None = None,
        head: HeadLike | None = None,
        task: HasHead | None = None,
        statistics: Literal["frozen", "adapt"] = "frozen",
        train: Sequence[str] = (),
    ) -> Self:
        """Put methods on the backbone under `name`, and switch to them. Several methods act together, in order.

        Args:
            methods: at least one; for a host with several towers mappings from towers to methods, "*" for all together.
            name: of the adapter; letters, digits, `-` and `_`.
            num_classes: make a new linear head for so many classes.
            head: or this one: a `Head`, a module (B, D) -> anything, a function of (description, width) that makes one,
                or a mapping from names of tasks to these.
            task: or the head that this task wants; the adapter remembers the task.
            train: names of further modules of the model that train as they are (a decoder, a detector's own head);
                they are saved with the adapter.
            statistics: "adapt" lets the running statistics of the backbone's BatchNorm layers move in training; they
                belong to this adapter then. "frozen" leaves them as they were pre-trained.

        Raises:
            AdapterError: the name is taken or unusable, nothing would change, or the model is compiled already.
            MissingPlace: a method asks for what this backbone does not have.
        """
        if self._compiled:
            raise AdapterError("This model is compiled, and hooks added afterwards would be ignored. Attach first.")
        if name in self.adapters or not name.replace("-", "").replace("_", "").isalnum():
            raise AdapterError(
                f"{name!r} is taken or no usable name. There are: {', '.join(self.adapters) or 'none yet'}."
            )
        placed = placed_methods(self.description, methods)
        chosen = tuple(one.method for one in placed)
        if sum(one is not None for one in (num_classes, head, task)) > 1 and not (head and task):
            raise AdapterError("Give num_classes, a head, or a task, not two of them.")
        if self.quantised is not None:
            raise AdapterError(f"The frozen weights are {self.quantised}; attach every adapter before quantising.")
        edits = edits_of(self.description, placed)
        edits += [self.description.module_place(part).unfreeze() for part in train]
        if not edits and not all(method.trains_head_only for method in chosen):
            idle = " + ".join(type(method).__name__ for method in chosen)
            raise AdapterError(f"{idle} changes nothing on {self.description.facts.architecture}.")
        width = feature_width(edits, self.description)
        own_classifier = (
            head is None
            and num_classes is None
            and task is None
            and not isinstance(self.description.classifier, nn.Identity)
        )
        if own_classifier and width != self.description.facts.width:
            raise AdapterError(
                f"With {' + '.join(type(method).__name__ for method in chosen)} the features have {width} channels,"
                f" but the backbone's own classifier takes {self.description.facts.width}. Give num_classes or a head."
            )
        made = made_head(self.description, width, num_classes, head, task)
        if made is None:
            require_on_host_path(self.description, edits)
        elif len(self.description.towers) > 1:
            raise AdapterError(
                f"{self.description.facts.architecture} has several towers and keeps its own outputs; a head belongs to"
                " one of them. Tune that tower alone, or leave out num_classes, head and task."
            )
        adapter = Adapter(name, made, task)
        adapter.train_too = tuple(train)
        previous = self._active
        self._activate(None)
        for tower in self.description.towers.values():
            if tower.pixels.enter is not None:
                self._wiring.begin_at(tower.pixels.enter, tower.inputs.time_axis)
        if self.origin is None and any(edit.verb == "unfreeze" and not edit.keep_original for edit in edits):
            self._remember_origin()
        like = _anchor(self.backbone)
        try:
            if statistics == "adapt":
                adapter.moving.add(adapter, self.backbone)
            for edit in edits:
                if edit.layer is not None:
                    edit.layer.to(device=like.device, dtype=like.dtype)
                adapter.put(edit)
                carry_out(edit, name, self._wiring)
            others = [self.description.place(place) for place in reads_of(made) if place != "outlet"]
            if others:
                read_for_head(others, name, self._wiring)
                sequence_for_head(others, edits, name, self._wiring)
        except Exception:
            self._wiring.remove(name)
            self._activate(previous)
            raise
        if adapter.head is not None:
            adapter.head.to(like.device)
        adapter.train(self.training)
        self.adapters[name] = adapter
        self._methods[name] = placed
        if self.description.host is not None:
            self._unproved.add(name)
        self._watch(name)
        self._note_stand_ins()
        self._activate(name)
        return self

    def _watch(self, name: str) -> None:
        """Say so, instead of training nothing, where a block's own parameters run in a reentrant checkpoint."""
        owners = {id(module) for module, *_ in self.adapter(name).unfrozen.targets}
        for block in self.description.blocks:
            if block.exit is not None and any(id(module) in owners for module in block.exit.module.modules()):
                self._wiring.watch(block.exit.module, name)

    def _remember_origin(self) -> None:
        """Training in place destroys the weights that an adapter file must name, so their digest is taken first."""
        from .adapter_file import weights_digest

        if not _anchor(self.backbone).is_meta:
            self.origin = weights_digest(self.description, self)

    @beside_no_pass
    def detach(self, name: str | None = None) -> nn.Module:
        """Take an adapter off. The backbone is bit by bit what it was, with no hook left when none remains.

        Raises:
            AdapterError: the method wrote into the backbone's weights and kept no originals (full fine-tuning).
        """
        name = self._known(name)
        adapter = self.adapter(name)
        if not adapter.unfrozen.exact:
            raise AdapterError(
                f"Adapter {name!r} trained the backbone's own weights in place and kept no originals,"
                " so it cannot be taken off. Load the backbone again."
            )
        if name in self._merged:
            self.unmerge(name)
        active = self._active
        self._activate(None)
        self._wiring.remove(name)
        self._routing.forget(name)
        del self.adapters[name]
        del self._methods[name]
        self._unproved.discard(name)
        self._wiring.switch.asks_query.discard(name)
        self._note_stand_ins()
        self._activate(active if active != name else next(iter(self.adapters), None))
        if self._compiled:
            self._decompile()
        if not self.adapters:
            for parameter, flag in zip(self.backbone.parameters(), self._flags, strict=True):
                parameter.requires_grad_(flag)
        return self.backbone

    # -- which adapter is on ----------------------------------------------------------------------------------------

    @property
    def active(self) -> str | None:
        """The adapter that is on, in the present thread or task."""
        return self._active

    @property
    def _active(self) -> str | None:
        return self._wiring.switch.choice.name

    @property
    def _route(self) -> tuple[str, ...] | None:
        return self._wiring.switch.choice.route

    def enable(self, *names: str) -> Enabled:
        """Switch adapters: one name for whole batches, or one for each sample of the next batches.

        As a statement it switches for everybody. In a `with` it switches for the present thread or asyncio task alone,
        and back at the end. With several names the batch must have as many samples, and all heads must agree in their
        outputs (`each` asks for neither). Adapters whose edits act on each image by itself share one pass through the
        backbone; the samples of any other run by themselves.
        """
        if not names:
            raise AdapterError(f"Which adapter? There are: {', '.join(self.adapters)}.")
        for name in names:
            self._known(name)
        choice = Choice(names[0]) if len(names) == 1 else Choice(self._active, names)
        enabled = Enabled(self, choice)
        self._stand_in()
        return enabled

    def disable(self) -> Enabled:
        """Run the frozen backbone: for everybody, or in a `with` for the present thread or task until its end."""
        enabled = Enabled(self, Choice())
        self._stand_in()
        return enabled

    def _activate(self, name: str | None) -> None:
        """Switch for everybody, or inside of a `with enable` until its end."""
        self._wiring.switch.set_default(Choice(name))
        self._stand_in()

    def _note_stand_ins(self) -> None:
        """Tell the switch which adapters put tensors of their own into the backbone, and which act through weights."""
        switch = self._wiring.switch
        switch.merged = set(self._merged)
        found = {name for name in self.adapters if self.adapter(name).unfrozen.targets or self.adapter(name).moving}
        switch.stands_in = found | switch.merged
        switch.follow()

    def _stand_in(self) -> None:
        """Put the tensors of the adapter that is on into the backbone, once no pass needs others there."""
        guard, wanted = self._wiring.switch.guard, self._wiring.switch.needs(self._active)
        if guard.standing != wanted and not guard.runs_here:  # what is under way here goes on with what it began with
            guard.begin(wanted, self._install)
            guard.end()

    def _install(self, name: str | None) -> None:
        """Put the tensors of one adapter into the backbone, or the frozen ones."""
        before = self._wiring.switch.guard.standing
        if before is not None and before in self.adapters:
            self.adapter(before).switch(False)
        for merged, folded in self._merged.items():
            folded.switch(merged == name)
        if name is not None:
            self.adapter(name).switch(True)
        self._hold_statistics(name)

    def _known(self, name: str | None) -> str:
        if name is None:
            if self._active is None:
                raise AdapterError(f"No adapter is on. There are: {', '.join(self.adapters) or 'none'}.")
            name = self._active
        if name not in self.adapters:
            raise AdapterError(f"There is no adapter {name!r}. {nearest(name, self.adapters)}")
        return name

    def adapter(self, name: str | None = None) -> Adapter:
        """The module of one adapter (the active one by default)."""
        found = self.adapters[self._known(name)]
        assert isinstance(found, Adapter)
        return found

    def methods(self, name: str | None = None) -> tuple[Method, ...]:
        """The methods of one adapter (the active one by default)."""
        return tuple(one.method for one in self.placed(name))

    def placed(self, name: str | None = None) -> tuple[Placed, ...]:
        """The methods of one adapter, each with the name of the tower that it is on (empty where there is one)."""
        return self._methods[self._known(name)]

    @property
    def head(self) -> nn.Module | None:
        """The active adapter's own head."""
        return None if self._active is None else self.adapter().head

    @property
    def task(self) -> Any:
        """The task of the active adapter, None where it was attached without one."""
        return None if self._active is None else self.adapter().task

    @task.setter
    def task(self, task: Any) -> None:
        self.adapter().task = task

    @property
    def rows_per_sample(self) -> int:
        """How many images make one sample of the active adapter's task."""
        return int(getattr(self.task, "images_per_sample", 1))

    # -- forward ----------------------------------------------------------------------------------------------------

    takes_batch = True

    def forward(self, *inputs: Any, batch: Batch | None = None, **named: Any) -> Any:
        """Inputs, for images (B, C, H, W) -> what the active adapter's head gives, for a classifier (B, classes).

        Without a head of the adapter's own it is what the model itself gives for these inputs. `batch` is what a head
        may look into: which of several tasks it is, targets that it needs.
        """
        if self._route is not None:
            self._require_no_host()
            return self._routing(self, inputs[0], self._route)
        if torch.compiler.is_compiling():
            return self._run(batch, inputs, named)
        with self._pass(inputs, named):
            return self._run(batch, inputs, named)

    def _run(self, batch: Batch | None, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What `forward` does within a pass."""
        if self.head is None and self.description.host is not None:
            return self._hosted(*inputs, **named)
        return self.outputs(self._pooled(*inputs, **named), batch)

    def each(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Images (B, C, H, W), the i-th through adapter `names[i]` -> the logits (classes,) of each.

        As with `enable` of several names, but heads may have different numbers of classes.
        """
        for name in names:
            self._known(name)
        self._require_no_host()
        return self._routing.each(self, images, names)

    def _require_no_host(self) -> None:
        if self.description.host is not None:
            raise AdapterError(
                f"Several adapters on one batch are for backbones with heads; {type(self.backbone).__name__} is a host,"
                " which runs with one adapter at a time."
            )

    def features(self, images: Any) -> Tensor:
        """Images (B, C, H, W) -> pooled features (B, D), with the active adapter's edits.

        Of a host it is the tower's feature; for several towers give {tower: inputs} and get theirs side by side.
        """
        if torch.compiler.is_compiling():
            return self._pooled(images)
        with self._pass((images,), lingers=True):
            return self._pooled(images)

    def _pooled(self, images: Tensor) -> Tensor:
        features: Tensor = self.description.outlet_anchor(self.description.pooled(images))
        return features

    @contextmanager
    def _pass(
        self,
        inputs: tuple[Any, ...],
        named: Mapping[str, Any] | None = None,
        *,
        shares: Shares | None = None,
        within: Within | None = None,
        lingers: bool = False,
    ) -> Iterator[ForwardPass]:
        """One forward pass: everything that belongs to it is in what this gives. Several may run at the same time.

        Args:
            inputs, named: of the model.
            shares, within: see `ForwardPass`.
            lingers: whether what was read is kept for a later call of `outputs` in this thread.
        """
        switch, query = self._wiring.switch, None
        if switch.asks_query:
            names = [self._active] if shares is None else [name for name, _ in shares.counts]
            if any(name in switch.asks_query for name in names):
                query = self._query(inputs, named or {})
        # in a host, the size is that of the images as they enter the tower, which may be others
        sizes = (images_size(one, self.description.inputs.time_axis) for one in (*inputs, *(named or {}).values()))
        size = next((found for found in sizes if found is not None), None)
        with switch.run(self._install, shares=shares, within=within, size=size, lingers=lingers) as now:
            if query is not None:
                now.query = query
            yield now

    @torch.no_grad()
    def _query(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        """The frozen model's own pooled feature of the inputs, in a pass of its own with no adapter on."""
        with self.disable(), self._pass(inputs, named):
            return self._pooled(*inputs, **named)

    def outputs(self, features: Tensor, batch: Batch | None = None) -> Any:
        """Pooled features (B, D) -> what the active head gives, or the model's own classifier.

        A head that reads other places finds what they gave in the present pass.
        """
        head = self.head
        if head is None:
            out = self.description.classifier(features)
        elif isinstance(head, Head):
            out = head(self._read(features), batch)
        else:
            out = head(features)
        return self.description.logits_anchor(out)

    def _read(self, features: Tensor) -> Features:
        """What the head may read in this pass."""
        now = self._wiring.switch.present
        return Features({**now.features, "outlet": Feature(features)}, now.size)

    def _hosted(self, *inputs: Any, **named: Any) -> Any:
        """The whole model that the described tower lives in, with the edits."""
        host, name = self.description.host, self._active
        assert host is not None
        if name not in self._unproved or name in self._merged or torch.compiler.is_compiling():
            return host(*inputs, **named)
        from .verify import require_all_ran

        # `verify` runs the tower alone; whether the host comes by every edit shows here, the first time
        switch, before, ran = self._wiring.switch, self._wiring.switch.watched, list[object]()
        switch.watched = ran
        try:
            out = host(*inputs, **named)
        finally:
            switch.watched = before
        require_all_ran(self, name, ran)
        self._unproved.discard(name)
        return out

    def train(self, mode: bool = True) -> Self:
        """Training mode; the backbone's BatchNorm layers stay in eval unless the adapter adapts their statistics."""
        super().train(mode)
        self._hold_statistics(self._wiring.switch.guard.standing)
        return self

    def _hold_statistics(self, name: str | None) -> None:
        adapts = name is not None and bool(self.adapter(name).moving)
        hold_still(self.backbone, self.training and adapts)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moving a module makes new buffers, so the adapter's statistics are put into the backbone again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._install(self._wiring.switch.guard.standing)
        return self

    # -- what trains ------------------------------------------------------------------------------------------------

    def trainable(self, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser should see, each once; the head's start with `head.`."""
        yield from self.adapter(name).trained()

    def adapter_state(self, name: str | None = None) -> dict[str, Tensor]:
        """Every tensor that makes an adapter (trained parameters, buffers, head), by place. The live tensors."""
        return self.adapter(name).tensors()

    @torch.no_grad()
    def load_adapter_state(self, state: dict[str, Tensor], name: str | None = None) -> None:
        """Copy tensors into an adapter.

        Raises:
            AdapterError: names or shapes differ; both sides are named.
        """
        own = self.adapter_state(name)
        require_equal_shapes(state, own)
        for key, tensor in own.items():
            tensor.copy_(state[key])

    def prepare(self, batches: Iterable[Any]) -> None:
        """Let the active methods look at real batches before training."""
        kept = [method for method in self.methods() if type(method).prepare is not Method.prepare]
        if kept:
            batches = list(batches)
            for method in kept:
                method.prepare(self, batches)

    def penalty(self) -> Tensor | None:
        """The sum of the active methods' penalties, or None when no method has one."""
        found = [value for method in self.methods() if (value := method.penalty(self)) is not None]
        return torch.stack(found).sum() if found else None

    def advance(self, progress: float) -> None:
        """Tell the active methods how much of training is done, 0 to 1."""
        for method in self.methods():
            method.advance(self, progress)

    # -- merge, compile, inspect, save ------------------------------------------------------------------------------

    @beside_no_pass
    def merge(self, name: str | None = None) -> Self:
        """Fold an adapter into the backbone's weights, so that it costs nothing; `unmerge` restores them bit by bit.

        While another adapter is on, or none, the weights are the frozen ones.

        Raises:
            CannotMerge: with the edits that have no exact weight form.
        """
        name = self._known(name)
        if self._merged and name not in self._merged:
            raise AdapterError(f"Adapter {next(iter(self._merged))!r} is merged; unmerge it first.")
        if name not in self._merged:
            with self.enable(name):  # what it unfroze is folded in, not what another adapter put there
                self._merged[name] = merge_edits(self.adapter(name).edits, self.quantised)
        self._note_stand_ins()
        self._activate(name)
        return self

    @beside_no_pass
    def unmerge(self, name: str | None = None) -> Self:
        """Undo `merge`, bit by bit."""
        name = self._known(name)
        if name in self._merged:
            self._merged.pop(name).restore()
            self._note_stand_ins()
            self._stand_in()
        return self

    def compile(self, *, fullgraph: bool = False, mode: str | None = None, dynamic: bool | None = None) -> Self:  # type: ignore[override]
        """torch.compile, block by block: one graph serves equal blocks. Attaching afterwards raises."""
        options: dict[str, Any] = {"fullgraph": fullgraph, "mode": mode, "dynamic": dynamic}
        for block in self.description.blocks:
            assert block.exit is not None
            block.exit.module.compile(**options)
        self._wiring.switch.compiled += not self._compiled
        self._compiled = True
        return self

    def _decompile(self) -> None:
        for block in self.description.blocks:
            assert block.exit is not None
            block.exit.module._compiled_call_impl = None
        self._wiring.switch.compiled -= self._compiled
        self._compiled = False

    def plan(self, name: str | None = None) -> Plan:
        """The table of all edits of one adapter, with totals."""
        from .plan import make_plan

        return make_plan(self, self._known(name))

    def verify(self, batch: Tensor | None = None, name: str | None = None) -> Report:
        """Prove that the adapter is alive; see `verify.verify`."""
        from .verify import verify

        return verify(self, self._known(name), batch)

    def save(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        labels: Sequence[str] | None = None,
        preprocessing: dict[str, Any] | None = None,
        task: Any = None,
        scores: dict[str, float] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Path:
        """Write one adapter as one safetensors file; see `adapter_file.save`."""
        from .adapter_file import save

        return save(self, self._known(name), Path(path), labels, preprocessing, task, scores, extra)

    def __repr__(self) -> str:
        return f"TunedModel of {self.description!r}\n" + "\n".join(str(self.plan(name)) for name in self.adapters)


def _anchor(model: nn.Module) -> nn.Parameter:
    """A floating-point parameter that tells device and precision."""
    return next(p for p in model.parameters() if p.is_floating_point())
