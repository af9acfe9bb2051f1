"""`TunedModel`: an unchanged backbone and the adapters that act on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from ..arguments import IN_ORDER, PATH, TEXT, TEXTS, WHOLE, Kind, one_of, require
from ..backbones.backbone import Backbone
from ..backbones.features import Feature, Features
from ..backbones.host import Towers
from ..backbones.module_names import whole_name
from ..backbones.points import MissingPlace, Point
from ..errors import nearest
from ..head import Head
from ..method import ONE_TASK, Method
from .adapter import Adapter, AdapterError, edits_of, require_equal_shapes
from .adapter_file import Manifest, save
from .adapters import Adapters
from .call_inputs import by_position, with_loss
from .carry_out import carry_out, read_for_head, sequence_for_head
from .enabled import Enabled, beside_no_pass
from .forward_pass import Choice, ForwardPass, Queries, Within
from .generation import generated
from .heads import HEAD, TASK, HasHead, HeadLike, Heads, feature_width, made_head, reads_of, seen_by_heads, task_names
from .hooks import Wiring
from .image_size import RAISED, input_refused, size_refused
from .merge import Merged, merge_edits
from .mixed_precision import HALF, in_precision, mixed_precision
from .operations import QUERY
from .placed import MethodLike, Placed, placed_methods, require_on_host_path
from .routed import Routing
from .run_time_grid import images_size
from .statistics import hold_still
from .switch import Shares
from .tuned_already import clean_up_after, refuse_tuned
from .two_towers import KeptFeatures, by_tower, outlets, outputs_of_towers, require_reads_towers
from .weights_digest import weights_digest

if TYPE_CHECKING:
    from ..batch import Batch
    from .plan import Plan
    from .verify import Report


class TunedModel(nn.Module):
    """A backbone with adapters.

    It has two children: `backbone` (the host, if the tower is inside one), whose state-dict keys do not change, and
    `adapters.<name>.<place>.<verb>`. Calling it returns the output of the active adapter's head, for a classifier
    (B, classes); without a head, the output of the host or of the model's own classifier. `repr` shows the plan.

    Several threads and asyncio tasks may call it at the same time. A context variable holds the state of each forward
    pass. `with enable` switches for the present thread or task only, `enable` as a statement for all. A pass that
    needs other tensors in the backbone (of an adapter with unfrozen parameters, adapted statistics or merged weights)
    waits for the running passes; attach, detach, merge, unmerge and verify wait for the passes of other threads. With
    compiled blocks, one pass runs at a time. Calling the backbone itself does not use these locks.

    A model has one TunedModel at a time. When that is gone, its hooks are gone too, and the model is as it was before;
    only merged weights and weights that were trained in place stay.
    """

    backbone: nn.Module
    adapters: Adapters

    def __init__(self, description: Backbone) -> None:
        super().__init__()
        self.backbone = description.root
        self.adapters = Adapters()
        self.description = description
        self.manifest: Manifest | None = None
        self._methods: dict[str, tuple[Placed, ...]] = {}
        self._wiring = Wiring()
        self._merged: dict[str, Merged] = {}
        self._routing = Routing()
        self._queries: Queries | None = None  # kept by an acceleration
        self._rewritten = 0  # number of `accelerate` calls whose patches are on the active adapter
        self._compiled = False
        self.origin: str | None = None  # digest of the weights, kept once an adapter trains them in place
        self._kept_features = KeptFeatures()
        self._unproved: set[str] = set()  # adapters that a host has not run in training yet
        self.quantised: str | None = None  # how the frozen linear maps were rounded, by `quantise`
        self._flags = [parameter.requires_grad for parameter in self.backbone.parameters()]
        self.backbone.requires_grad_(False)
        self.training = self.backbone.training  # evaluates or trains as the given model did
        clean_up_after(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        clean_up_after(self)

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
        """Attach methods to the backbone as one adapter and enable it.

        Waits until the forward passes of other threads have ended.

        Args:
            methods: at least one; several act together, in order. For a host, mappings from the names of its towers
                and parts to methods; see `tune`.
            name: the name of the adapter: letters, digits, `-` and `_`.
            num_classes: classes of a new linear head.
            head: a head of your own: a `Head`, a module (B, D) -> anything, a function (description, width) -> head,
                or a mapping from task names to these.
            task: the task, which makes the head; the adapter keeps the task.
            train: names of further modules of the model that train (a decoder, a detector's own head); they are saved
                with the adapter.
            statistics: "adapt" updates the running statistics of the backbone's BatchNorm layers in training; they
                then belong to this adapter. "frozen" keeps the pre-trained statistics.

        Raises:
            AdapterError: the name is in use or not valid, the methods change nothing, the model is compiled, another
                TunedModel acts on it, or a forward pass of the same thread is running.
            MissingPlace: a method needs a place that this backbone does not have.
        """
        require(
            "attach(method)",
            name=(name, TEXT),
            num_classes=(num_classes, WHOLE.or_none()),
            head=(head, HEAD.or_none()),
            task=(task, TASK.or_none()),
            statistics=(
                statistics,
                Kind('"frozen" or "adapt"', lambda value: isinstance(value, str) and value in ("frozen", "adapt")),
            ),
            train=(train, TEXTS),
        )
        if not self.adapters:
            refuse_tuned(self.backbone)
        if self._compiled:
            raise AdapterError("This model is compiled, and hooks added afterwards would be ignored. Attach first.")
        if name in self.adapters or not name.replace("-", "").replace("_", "").isalnum():
            raise AdapterError(
                f"{name!r} is taken or no usable name. There are: {', '.join(self.adapters) or 'none yet'}."
            )
        tasks = task_names(head, task)
        placed = placed_methods(self.description, methods)
        labels = tuple(getattr(task, "labels", ()))
        if labels:
            placed = tuple(replace(one, method=one.method.for_labels(labels)) for one in placed)
        if tasks:
            placed = tuple(replace(one, method=one.method.for_tasks(tasks)) for one in placed)
        chosen = tuple(one.method for one in placed)
        if sum(one is not None for one in (num_classes, head, task)) > 1 and not (head and task):
            raise AdapterError("Give num_classes, a head, or a task, not two of them.")
        if self.quantised is not None:
            raise AdapterError(f"The frozen weights are {self.quantised}; attach every adapter before quantising.")
        edits = edits_of(self.description, placed)
        if not edits and not all(method.trains_head_only for method in chosen):
            idle = " + ".join(type(method).__name__ for method in chosen)
            raise AdapterError(f"{idle} changes nothing on {self.description.facts.architecture}.")
        named = self.description.aliases
        train = tuple(whole_name(self.description.root, named.get(part, part)) for part in train)
        edits += [self.description.module_place(part).unfreeze() for part in train]
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
        seen = seen_by_heads(edits, self.description)
        made = made_head(seen, width, num_classes, head, task)
        if made is None:
            require_on_host_path(self.description, edits)
        elif len(self.description.towers) > 1:
            require_reads_towers(self.description, made, reads_of(made), edits)
        if tasks:
            self._wiring.switch.tasks[name] = tasks
        adapter = Adapter(name, made, task)
        adapter.train_too = tuple(train)
        previous = self._active
        self._activate(None)
        for tower in self.description.towers.values():
            if tower.frames_enter is not None:
                self._wiring.begin_at(Point(tower.frames_enter, "input"), tower.inputs.time_axis)
                self._wiring.count_frames_at(tower.frames_enter)
            elif tower.pixels.enter is not None:
                self._wiring.begin_at(tower.pixels.enter, tower.inputs.time_axis)
        if self.origin is None and any(edit.verb == "unfreeze" and not edit.keep_original for edit in edits):
            self._remember_origin()
        like = _anchor(self.backbone)
        precision = torch.float32 if like.dtype in HALF else like.dtype
        self._wiring.switch.keeps_precision = like.dtype in HALF
        try:
            if statistics == "adapt":
                adapter.moving.add(adapter, self.backbone)
            for edit in edits:
                if edit.layer is not None:
                    edit.layer.to(device=like.device, dtype=precision)
                adapter.put(edit)
                carry_out(edit, name, self._wiring)
            known = ("outlet", QUERY, *outlets(self.description))
            read = [seen.place(place) for place in reads_of(made) if place not in known]
            if QUERY in reads_of(made):
                self._wiring.switch.asks_query.add(name)
            levels = [place for place in read if seen is not self.description and place in seen.stages]
            others = [place for place in read if place not in levels]
            if read:
                read_for_head(others, name, self._wiring)
                sequence_for_head(others, levels, edits, name, self._wiring)
        except Exception:
            self._wiring.remove(name)
            self._wiring.switch.tasks.pop(name, None)
            self._activate(previous)
            raise
        if adapter.head is not None:
            adapter.head.to(like.device, torch.float64 if like.dtype == torch.float64 else None)
        adapter.train(self.training)
        self.adapters[name] = adapter
        self._methods[name] = placed
        if self.description.host is not None:
            self._unproved.add(name)
        self._watch(name)
        self._note_stand_ins()
        self._activate(name)
        return self

    def replace_method(self, old: Method, new: Method) -> None:
        """Attach `new` in the place of `old` in the active adapter, before it has trained.

        `prepare` calls it where the data decide which edits a method has. Head, task and the tensors of the adapter's
        other methods stay as they are.

        Raises:
            AdapterError: the adapter does not have `old`, or trains the backbone's weights in place.
        """
        name = self._known(None)
        adapter, placed = self.adapter(name), self._methods[name]
        if all(one.method is not old for one in placed):
            raise AdapterError(f"The adapter {name!r} does not have {old!r}. It has: {', '.join(map(str, placed))}.")
        state = {key: tensor.clone() for key, tensor in self.adapter_state(name).items()}
        statistics: Literal["frozen", "adapt"] = "adapt" if adapter.moving else "frozen"
        methods = [(new if one.method is old else one.method, one.tower) for one in placed]
        self.detach(name)
        self.backbone.requires_grad_(False)
        self.attach(
            *({tower: method} if tower else method for method, tower in methods),
            name=name,
            head=adapter.head,
            task=adapter.task,
            statistics=statistics,
            train=adapter.train_too,
        )
        with torch.no_grad():
            for key, tensor in self.adapter_state(name).items():
                if key in state and state[key].shape == tensor.shape:
                    tensor.copy_(state[key])

    def _watch(self, name: str) -> None:
        """Watch blocks with unfrozen parameters: a reentrant checkpoint would not train them, so it raises an error."""
        owners = {id(module) for module, *_ in self.adapter(name).unfrozen.targets}
        for block in self.description.blocks:
            if block.exit is not None and any(id(module) in owners for module in block.exit.module.modules()):
                self._wiring.watch(block.exit.module, name)

    def _remember_origin(self) -> None:
        """Store the digest of the weights, which adapter files need, before training in place changes them."""
        if not _anchor(self.backbone).is_meta:
            self.origin = weights_digest(self.description, self)

    @beside_no_pass
    def detach(self, name: str | None = None) -> nn.Module:
        """Remove an adapter and return the backbone, which is then bit-equal to before; the last one removes all hooks.

        Args:
            name: the adapter; the active one by default.

        Raises:
            AdapterError: the adapter trained the backbone's weights in place without a copy (full fine-tuning).
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
        self._kept_features.forget(name)
        self._wiring.switch.asks_query.discard(name)
        self._wiring.switch.tasks.pop(name, None)
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
        """The name of the enabled adapter in the present thread or task; None if none is enabled."""
        return self._active

    @property
    def _active(self) -> str | None:
        return self._wiring.switch.choice.name

    @property
    def _route(self) -> tuple[str, ...] | None:
        return self._wiring.switch.choice.route

    def enable(self, *names: str) -> Enabled:
        """Enable an adapter: one name for whole batches, or one name for each sample of the next batches.

        As a statement it switches for all threads. In a `with` it switches for the present thread or asyncio task
        only, and switches back at the end. With several names, the batch must have as many samples, and all heads must
        have the same outputs (`each` requires neither). Adapters whose edits act on each image separately share one
        pass through the backbone; the samples of other adapters run in passes of their own.

        Raises:
            AdapterError: no name is given, or an adapter does not exist.
        """
        if not names:
            raise AdapterError(f"Which adapter? There are: {', '.join(self.adapters)}.")
        for name in names:
            require("tuned.enable(name)", name=(name, TEXT))
            self._known(name)
        choice = Choice(names[0]) if len(names) == 1 else Choice(self._active, names)
        enabled = Enabled(self, choice)
        self._stand_in()
        return enabled

    def disable(self) -> Enabled:
        """Disable all adapters: as a statement for all threads, in a `with` for the present thread or task only."""
        enabled = Enabled(self, Choice())
        self._stand_in()
        return enabled

    def _activate(self, name: str | None) -> None:
        """Enable an adapter for all threads, or until its end inside a `with enable`."""
        self._wiring.switch.set_default(Choice(name))
        self._stand_in()

    def _note_stand_ins(self) -> None:
        """Tell the switch which adapters put their own tensors into the backbone, and which are merged."""
        switch = self._wiring.switch
        switch.merged = set(self._merged)
        found = {name for name in self.adapters if self.adapter(name).unfrozen.targets or self.adapter(name).moving}
        switch.stands_in = found | switch.merged
        switch.follow()

    def _stand_in(self) -> None:
        """Put the enabled adapter's own tensors into the backbone, once no running pass needs other tensors there."""
        active = self._active
        self.adapters.follow(active)
        guard, wanted = self._wiring.switch.guard, self._wiring.switch.needs(active)
        if guard.installed != wanted and not guard.runs_here:  # a running pass keeps the tensors that it began with
            guard.begin(wanted, self._install)
            guard.end()

    def _install(self, name: str | None) -> None:
        """Put one adapter's own tensors into the backbone, or the frozen tensors for None."""
        before = self._wiring.switch.guard.installed
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
        if not isinstance(name, str) or name not in self.adapters:
            raise AdapterError(f"There is no adapter {name!r}. {nearest(str(name), self.adapters)}")
        return name

    def adapter(self, name: str | None = None) -> Adapter:
        """Return the module of one adapter (the active one by default)."""
        found = self.adapters[self._known(name)]
        assert isinstance(found, Adapter)
        return found

    def methods(self, name: str | None = None) -> tuple[Method, ...]:
        """Return the methods of one adapter (the active one by default)."""
        return tuple(one.method for one in self.placed(name))

    def placed(self, name: str | None = None) -> tuple[Placed, ...]:
        """Return the methods of one adapter, each with the name of its tower (empty if the model has one tower)."""
        return self._methods[self._known(name)]

    @property
    def head(self) -> nn.Module | None:
        """The head of the active adapter; None if it has none."""
        return None if self._active is None else self.adapter().head

    @property
    def task(self) -> Any:
        """The task of the active adapter; None if it was attached without one."""
        return None if self._active is None else self.adapter().task

    @task.setter
    def task(self, task: Any) -> None:
        self.adapter().task = task

    @property
    def host_alone(self) -> nn.Module | None:
        """The host, where it runs with its own head: tasks then speak to it in its own format. None otherwise."""
        return self.description.host if self.head is None else None

    @property
    def rows_per_sample(self) -> int:
        """The number of images in one sample of the active adapter's task."""
        return int(getattr(self.task, "images_per_sample", 1))

    # -- several tasks of one adapter ------------------------------------------------------------------------------

    def tasks(self, name: str | None = None) -> tuple[str, ...]:
        """The names of the tasks that an adapter serves, in the order of its heads; one name for one head."""
        return self._wiring.switch.tasks.get(self._known(name)) or (ONE_TASK,)

    @contextmanager
    def for_tasks(self, *tasks: str) -> Iterator[Self]:
        """A context in which the present thread or asyncio task runs the model for some of the adapter's tasks alone.

        Raises:
            AdapterError: the adapter does not serve such a task, or none is named.
        """
        known = self.tasks()
        unknown = [task for task in tasks if task not in known]
        if unknown or not tasks:
            raise AdapterError(f"Which tasks? {', '.join(unknown) or 'None'} of them: {', '.join(known)}.")
        with self._wiring.switch.for_tasks(tasks):
            yield self

    def passes(self, name: str | None = None) -> tuple[tuple[str, ...], ...]:
        """The passes through the trunk that serve all tasks of an adapter, each with its tasks."""
        on = self._active if name is None else name
        tasks = (None if on is None else self._wiring.switch.tasks.get(on)) or (ONE_TASK,)
        if len(tasks) > 1 and any(method.runs_per_task for method in self.methods(name)):
            return tuple((task,) for task in tasks)
        return (tasks,)

    def _by_task(self, batch: Batch | None, run: Callable[[tuple[str, ...] | None, Batch | None], Any]) -> Any:
        """What `run` gives for the tasks of a batch, or of each in a pass of its own where a method needs that.

        `run` is given the tasks of a pass, None for all, and the batch that its heads see.
        """
        if self._active is None or self._active not in self._wiring.switch.tasks:
            return run(None, batch)
        if batch is not None and batch.task:
            return run((batch.task,), batch)
        chosen = self._wiring.switch.chosen_tasks()
        tasks = chosen or self.tasks()
        if len(tasks) == 1 or not any(method.runs_per_task for method in self.methods()):
            return run(chosen, batch)
        found: dict[str, Any] = {}
        for task in tasks:
            found |= run((task,), None if batch is None else batch)
        return found

    # -- forward ----------------------------------------------------------------------------------------------------

    takes_batch = True
    accepts_loss_kwargs = False  # for the Trainer of transformers: the loss is a mean over the batch

    def forward(
        self,
        *inputs: Any,
        batch: Batch | None = None,
        pixel_values: Any = None,
        labels: Any = None,
        **named: Any,
    ) -> Any:
        """Return the output of the active adapter's head, for a classifier (B, classes); see the class.

        Args:
            inputs, named: the model's inputs, such as images (B, C, H, W).
            batch: for heads that need more than features: the task of the batch, its targets.
            pixel_values: the images, by the name that transformers gives them.
            labels: the targets, by the name that transformers gives them. The result is then {"loss": scalar,
                "logits": output}, as its `Trainer` wants it; the loss is that of the adapter's task, or of
                classification. A host is given them as they are.
        """
        if pixel_values is not None:
            named["pixel_values"] = pixel_values
        named.pop("num_items_in_batch", None)
        if self.description.host is None:
            inputs, named = by_position(self.description, inputs, named), {}
        if self.reads_towers:
            assert isinstance(self.description, Towers)
            inputs, named = (by_tower(self.description, inputs, named),), {}
        if labels is not None:
            if self.head is None and self.description.host is not None:
                named["labels"] = labels
            else:
                return with_loss(self, inputs, named, labels)
        if self._route is not None:
            self._require_no_host()
            return self._routing(self, inputs[0], self._route)
        return self._by_task(batch, lambda tasks, part: self._in_pass(tasks, part, inputs, named))

    def _in_pass(
        self, tasks: tuple[str, ...] | None, batch: Batch | None, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Compute the output for some tasks in a pass of its own."""
        if torch.compiler.is_compiling():
            self._wiring.switch.common.tasks = tasks
            return self._run(batch, inputs, named)
        with self._pass(inputs, named, tasks=tasks, ids=() if batch is None else batch.ids):
            return self._run(batch, inputs, named)

    def _run(self, batch: Batch | None, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Compute the output inside an open pass."""
        if self.head is None and self.description.host is not None:
            with mixed_precision(self.backbone, self.adapters):
                return self._hosted(*in_precision(self.backbone, inputs), **named)
        if self.reads_towers:
            with mixed_precision(self.backbone, self.adapters):
                return outputs_of_towers(self, in_precision(self.backbone, inputs[0]), batch)
        return self.outputs(self._pooled(*inputs, **named), batch)

    @property
    def reads_towers(self) -> bool:
        """Whether the active adapter's head compares what the towers of a host give."""
        return self.head is not None and isinstance(self.description, Towers)

    def _headed(self, found: Mapping[str, Feature], batch: Batch | None) -> Any:
        """Return the output of the active head for the features of towers, in the present pass."""
        head, now = self.head, self._wiring.switch.present
        assert head is not None
        return self.description.logits_anchor(head(Features({**now.features, **found}, now.size), batch))

    def each(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Run the i-th of the images (B, C, H, W) with adapter `names[i]`; return the output (classes,) of each.

        It works as `enable` with several names, but the heads may have different numbers of classes.
        """
        require("tuned.each(images, names)", images=(images, one_of(Tensor, says="a tensor")), names=(names, IN_ORDER))
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

    def generate(self, *inputs: Any, **named: Any) -> Any:
        """Return what the host's own `generate` gives (token numbers of texts), with the active adapter's edits.

        Prompts and prefixes are inserted once: with the host's key-value cache their keys and values are kept beside
        it. The arguments are those of the host's `generate`; the model evaluates meanwhile.

        Raises:
            AdapterError: the model generates nothing.
        """
        return generated(self, inputs, named)

    def features(self, images: Any) -> Tensor:
        """Return the pooled features (B, D) of images (B, C, H, W), with the active adapter's edits.

        For a host these are the features of its tower. For a host with several towers, pass {tower: inputs}; the
        features of the towers are concatenated.
        """
        if torch.compiler.is_compiling():
            return self._pooled(images)
        if self._active is not None and len(self.passes()) > 1 and len(self._wiring.switch.chosen_tasks() or ()) != 1:
            task = self.tasks()[0]
            raise AdapterError(
                f"The features of this adapter differ from task to task. Say which: with tuned.for_tasks({task!r}): ..."
            )
        with self._pass((images,), lingers=True):
            return self._pooled(images)

    def _pooled(self, images: Tensor) -> Tensor:
        switch = self._wiring.switch
        # what an adapter has unfrozen stays in the backbone while code is compiled, so that its query cannot be had
        traced = switch.asks_query and torch.compiler.is_compiling() and not self.adapter().unfrozen.targets
        asks = traced and self._active in switch.asks_query
        features = self._with_traced_query(images) if asks else self._at_outlet(images)
        return self.description.gathered(features, images)

    def _with_traced_query(self, images: Tensor) -> Tensor:
        """`_at_outlet` in compiled code, whose passes share one state, for an adapter that reads the query."""
        common = self._wiring.switch.common
        on, common.on = common.on, None
        with torch.no_grad():
            query = self._at_outlet(images)
        common.on, common.query = on, query
        features = self._at_outlet(images)
        common.query = None
        return features

    def _at_outlet(self, images: Tensor) -> Tensor:
        with mixed_precision(self.backbone, self.adapters):
            images = in_precision(self.backbone, images)
            features: Tensor = self.description.outlet_anchor(self._of_backbone(images))
        return features

    def _of_backbone(self, images: Tensor) -> Tensor:
        """The backbone's pooled feature; an error that the images' size explains says so."""
        if torch.compiler.is_compiling():
            return self.description.at_outlet(images)
        try:
            return self.description.at_outlet(images)
        except RAISED as error:
            refused = input_refused(self.description, images, error)
            refusal = refused or size_refused(self.description, images_size(images), error)
            if refusal is None:
                raise
            raise refusal from error

    @contextmanager
    def _pass(
        self,
        inputs: tuple[Any, ...],
        named: Mapping[str, Any] | None = None,
        *,
        shares: Shares | None = None,
        within: Within | None = None,
        lingers: bool = False,
        tasks: tuple[str, ...] | None = None,
        ids: tuple[str, ...] = (),
    ) -> Iterator[ForwardPass]:
        """Open a forward pass and yield its state. Several passes may be open at the same time.

        Args:
            inputs, named: the model's inputs.
            shares, within: see `ForwardPass`.
            lingers: keep the values that were read for a later call of `outputs` in this thread.
            tasks: of the active adapter that the pass is for; None for those of `for_tasks`, or all.
            ids: the names of the samples, where the batch has some.
        """
        switch, query = self._wiring.switch, None
        if switch.asks_query:
            names = [self._active] if shares is None else [name for name, _ in shares.counts]
            if any(name in switch.asks_query for name in names):
                kept, compute = self._queries, partial(self._query, inputs, named or {})
                query = compute() if kept is None else kept.query(ids, compute)
        # in a host, the size is that of the images as they enter the tower, which may be others
        given = [*inputs, *(named or {}).values()]
        given = [part for one in given for part in (one.values() if isinstance(one, Mapping) else (one,))]
        sizes = (images_size(one, self.description.inputs.time_axis) for one in given)
        size = next((found for found in sizes if found is not None), None)
        for name in [self._active] if shares is None else [name for name, _ in shares.counts]:
            self.adapters.follow(name)
        with switch.run(self._install, shares=shares, within=within, size=size, lingers=lingers, tasks=tasks) as now:
            if query is not None:
                now.query = query
            yield now

    @torch.no_grad()
    def _query(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        """Return the frozen model's pooled feature of the inputs, in a separate pass without adapters."""
        with self.disable(), self._pass(inputs, named):
            query: Tensor = self._at_outlet(*inputs, **named)
            return query

    def outputs(self, features: Tensor, batch: Batch | None = None) -> Any:
        """Return the output of the active head, or of the model's own classifier, for pooled features (B, D).

        A head that reads other places gets their values from the present pass.
        """
        head = self.head
        with mixed_precision(self.backbone, self.adapters):
            read = self._read(features)
            if head is None:
                out = self.description.classifier(read["outlet"])
            elif isinstance(head, Head):
                out = head(read, batch)
            else:
                out = head(read["outlet"])
            if not isinstance(out, Tensor):
                self._need_no_logits()
                return out
            return self.description.logits_anchor(out)

    def _need_no_logits(self) -> None:
        """Refuse edits of the logits under a head that gives something else.

        Raises:
            MissingPlace: there is such an edit.
        """
        names = self._route or ([] if self._active is None else [self._active])
        for name in set(names):
            for edit in self.adapter(name).edits:
                if edit.place.name.rpartition(".")[2] == "logits":
                    raise MissingPlace(
                        f"{type(edit.layer).__name__} changes the logits of classes, (B, C), and the head"
                        f" {type(self.head).__name__} gives something else. Use the method with classification."
                    )

    def _read(self, features: Tensor) -> Features:
        """Return the features that the head reads in this pass, by place."""
        now = self._wiring.switch.present
        query = {} if now.query is None else {QUERY: Feature(now.query if now.rows is None else now.query[now.rows])}
        own = now.features_of_tasks(now.on)
        read = Features({**now.features, **query, "outlet": Feature(features)}, now.size, now.tasks, own)
        # several heads each take what is theirs
        return read if isinstance(self.head, Heads) else read.for_task(ONE_TASK)

    def _hosted(self, *inputs: Any, **named: Any) -> Any:
        """Run the host of the tower, with the edits."""
        host, name = self.description.host, self._active
        assert host is not None
        if name not in self._unproved or name in self._merged or torch.compiler.is_compiling():
            return host(*inputs, **named)
        from .host_pass import checked_pass

        # `verify` runs only the tower, so the first passes check that the host executes and uses every edit
        out, done = checked_pass(self, name, lambda: host(*inputs, **named))
        if done:
            self._unproved.discard(name)
        return out

    def train(self, mode: bool = True) -> Self:
        """Set training mode. The backbone's BatchNorm layers stay in eval mode unless the adapter adapts them."""
        super().train(mode)
        for name in self._route or (self._active,):
            self.adapters.follow(name)  # who holds a layer of it sees the new mode
        self._hold_statistics(self._wiring.switch.guard.installed)
        return self

    def _hold_statistics(self, name: str | None) -> None:
        adapts = name is not None and bool(self.adapter(name).moving)
        hold_still(self.backbone, self.training and adapts)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or cast the module. This makes new buffers, so the adapter's statistics are put in again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._install(self._wiring.switch.guard.installed)
        return self

    # -- what trains ------------------------------------------------------------------------------------------------

    def trainable(self, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and parameter of everything that trains, each once; the head's names start with `head.`."""
        yield from self.adapter(name).trained()

    def rate_factors(self, name: str | None = None) -> dict[str, float]:
        """Return the factors by which the learning rate of trained tensors differs, where a method states one."""
        return self.adapter(name).stated_rate_factors()

    def adapter_state(self, name: str | None = None) -> dict[str, Tensor]:
        """Return the live tensors of an adapter (trained parameters, buffers, head), by place."""
        return self.adapter(name).tensors()

    @torch.no_grad()
    def load_adapter_state(self, state: dict[str, Tensor], name: str | None = None) -> None:
        """Copy tensors into an adapter.

        Raises:
            AdapterError: names or shapes differ; the message lists both sides.
        """
        own = self.adapter_state(name)
        require_equal_shapes(state, own)
        for key, tensor in own.items():
            tensor.copy_(state[key])

    def prepare(self, batches: Iterable[Any]) -> None:
        """Call `prepare` of the active methods with batches of training data."""
        kept = [method for method in self.methods() if method.reads_data]
        if kept:
            batches = list(batches)
            for method in kept:
                method.prepare(self, batches)
            self._wiring.switch.forget()  # the passes of `prepare` had their backward passes, before the edits changed

    def begin_epoch(self, batches: Iterable[Any]) -> None:
        """Let the active methods that follow the data look at the batches of the epoch that begins."""
        for method in self.methods():
            if method.follows_data:
                method.begin_epoch(self, batches)

    def penalty(self) -> Tensor | None:
        """Return the sum of the active methods' penalties; None if no method has one."""
        found = [value for method in self.methods() if (value := method.penalty(self)) is not None]
        return torch.stack(found).sum() if found else None

    def extra_loss(self, outputs: Any, loss: Callable[[Any], Tensor]) -> Tensor | None:
        """Return the sum of what the active methods add to the loss from outputs of their own; None if none does.

        Args:
            outputs: of the head in the pass that has just ended.
            loss: the task's loss of any outputs of the head for the same batch.
        """
        found = [value for method in self.methods() if (value := method.extra_loss(self, outputs, loss)) is not None]
        return torch.stack(found).sum() if found else None

    def batch_loss(self, outputs: Any, batch: Callable[[], Batch]) -> Tensor | None:
        """Return the sum of what the active methods add to the loss by running the model again; None if none does.

        Args:
            outputs: of the head in the pass that has just ended.
            batch: makes the batch of this pass, with the model's own inputs; it is called where a method asks.
        """
        asking = [method for method in self.methods() if method.runs_again]
        if not asking:
            return None
        given = batch()
        found = [value for method in asking if (value := method.batch_loss(self, outputs, given)) is not None]
        return torch.stack(found).sum() if found else None

    def advance(self, progress: float) -> None:
        """Tell the active methods the progress of training, from 0 to 1."""
        for method in self.methods():
            method.advance(self, progress)

    def after_backward(self) -> None:
        """Let the active methods look at the gradients, after the backward pass and before the optimiser's step."""
        for method in self.methods():
            method.after_backward(self)

    # -- merge, compile, inspect, save ------------------------------------------------------------------------------

    @beside_no_pass
    def merge(self, name: str | None = None) -> Self:
        """Fold an adapter into the backbone's weights, so that it costs nothing; `unmerge` undoes it exactly.

        While another adapter or none is enabled, the backbone has its frozen weights.

        Raises:
            CannotMerge: edits cannot be folded into a weight exactly; the message lists them.
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
        """Undo `merge` exactly, bit by bit."""
        name = self._known(name)
        if name in self._merged:
            self._merged.pop(name).restore()
            self._note_stand_ins()
            self._stand_in()
        return self

    def compile(self, *, fullgraph: bool = False, mode: str | None = None, dynamic: bool | None = None) -> Self:  # type: ignore[override]
        """Compile every block with torch.compile; equal blocks share a graph. `attach` raises an error afterwards."""
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
        """Return the table of all edits of one adapter, with totals."""
        from .plan import make_plan

        return make_plan(self, self._known(name))

    def verify(self, batch: Tensor | None = None, name: str | None = None) -> Report:
        """Check that every edit of the adapter has an effect and gets a gradient; see `verify.verify`."""
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
        require(
            "tuned.save(path)",
            path=(path, PATH),
            labels=(labels, IN_ORDER.or_none()),
            preprocessing=(preprocessing, one_of(Mapping, says="a mapping").or_none()),
            scores=(scores, one_of(Mapping, says="a mapping from names to numbers").or_none()),
        )
        return save(self, self._known(name), Path(path), labels, preprocessing, task, scores, extra)

    def __repr__(self) -> str:
        return f"TunedModel of {self.description!r}\n" + "\n".join(str(self.plan(name)) for name in self.adapters)


def _anchor(model: nn.Module) -> nn.Parameter:
    """Return a floating-point parameter of the model, for its device and dtype."""
    return next(p for p in model.parameters() if p.is_floating_point())
