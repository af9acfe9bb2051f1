"""The plan: a table of all edits of an adapter, with their parameters and how far back gradients travel."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table
from torch import nn

from ..backbones.edits import Edit
from ..safe_text import SafeConsole
from .heads import own_head
from .merge import why_not

if TYPE_CHECKING:
    from .tuned_model import TunedModel


@dataclass(frozen=True)
class PlanRow:
    """One edit.

    Attributes:
        place, verb, layer: of the edit.
        shape: the largest tensor of the layer.
        parameters: trained parameters; a tensor that several edits share counts at the first one.
        unmergeable: the reason why the edit cannot be merged, or None.
        reach: how far back gradients travel from here.
    """

    place: str
    verb: str
    layer: str
    shape: str
    parameters: int
    unmergeable: str | None
    reach: str


@dataclass(frozen=True)
class Plan:
    """The edits of one adapter and their totals.

    Attributes:
        name: the name of the adapter.
        methods: the methods with their settings, as text.
        rows: one row for each edit.
        trainable, trainable_with_head: numbers of trained parameters, without and with the head.
        backbone_parameters: number of parameters of the backbone without its classifier.
        bytes_on_disk: bytes of the tensors in the adapter file; the manifest adds a few kB.
        reach: how far back gradients travel: "none", "from block k" or "full".
        own_head: what the model's own classifier is, where it stays, frozen; None where the adapter has a head.
        tasks: the tasks that the adapter serves, where it has several heads.
        passes: how many passes through the trunk serve all of them.
    """

    name: str
    methods: tuple[str, ...]
    rows: tuple[PlanRow, ...]
    trainable: int
    trainable_with_head: int
    backbone_parameters: int
    bytes_on_disk: int
    reach: str
    own_head: str | None = None
    tasks: tuple[str, ...] = ()
    passes: int = 1

    @property
    def share(self) -> float:
        """Trained parameters without the head, divided by the backbone's parameters."""
        return self.trainable / self.backbone_parameters

    @property
    def mergeable(self) -> bool:
        """Whether the whole adapter can be folded into the weights."""
        return all(row.unmergeable is None for row in self.rows)

    @property
    def folded(self) -> list[PlanRow]:
        """The rows, where rows that differ only in the numbers of their place are one row: `blocks.0-11.attn.q`."""
        return _fold(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, for records."""
        return {**asdict(self), "share": self.share, "mergeable": self.mergeable}

    def totals(self) -> str:
        """Return the totals in one line."""
        kept = "" if self.own_head is None else f"; the model's own {self.own_head} stays, frozen"
        return (
            f"{self.trainable:,} trained parameters ({self.share:.3%} of {self.backbone_parameters:,}),"
            f" {self.trainable_with_head:,} with the head; {self.bytes_on_disk / 1e6:.2f} MB on disk;"
            f" gradients reach: {self.reach}; {'mergeable' if self.mergeable else 'not mergeable'}{kept}"
            f"{self._of_tasks()}"
        )

    def _of_tasks(self) -> str:
        if not self.tasks:
            return ""
        runs = "once for all tasks" if self.passes == 1 else f"once for each of {self.passes} tasks"
        return f"; the trunk runs {runs} ({', '.join(self.tasks)})"

    def __rich__(self) -> Table:
        table = Table(title=f"{self.name}: {' + '.join(self.methods)}", caption=self.totals(), title_justify="left")
        for column in ("place", "verb", "layer", "shape"):
            table.add_column(column, overflow="fold", min_width=len(column))
        table.add_column("params", justify="right", no_wrap=True)
        table.add_column("merges", no_wrap=True)
        table.add_column("reach", no_wrap=True)
        for row in self.folded:
            merges = "yes" if row.unmergeable is None else "no"
            table.add_row(row.place, row.verb, row.layer, row.shape, f"{row.parameters:,}", merges, row.reach)
        return table

    def __str__(self) -> str:
        console = SafeConsole(width=140, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()


def _fold(rows: tuple[PlanRow, ...]) -> list[PlanRow]:
    groups: dict[tuple[str, ...], list[PlanRow]] = {}
    for row in rows:
        part = ".".join("*" if step.isdigit() else step for step in row.place.split("."))
        groups.setdefault((part, row.verb, row.layer, row.shape, str(row.parameters)), []).append(row)
    shown = []
    for group in groups.values():
        steps = [row.place.split(".") for row in group]
        place = ".".join(_span([step[i] for step in steps]) for i in range(len(steps[0])))
        parameters = sum(row.parameters for row in group)
        shown.append(replace(group[0], place=place, parameters=parameters))
    return shown


def _span(steps: list[str]) -> str:
    if len(set(steps)) == 1:
        return steps[0]
    numbers = sorted({int(step) for step in steps})
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers))


def reach_of(edit: Edit, depth: int) -> int:
    """Return the first block that a gradient from this edit's output reaches; `depth` if it reaches none."""
    if edit.verb == "tap":
        return depth  # the edit that reads its result decides where the gradient enters the trunk
    if getattr(edit.layer, "keeps_forward", False):
        return depth  # it changes the gradient of what other edits train
    if edit.layer is not None and not edit.reads and not any(p.requires_grad for p in edit.layer.parameters()):
        return depth  # nothing trains here
    return min(edit.place.depth, depth)


def _reach_text(start: int, depth: int) -> str:
    if start >= depth:
        return "none"
    return "full" if start <= 0 else f"from block {start}"


def _tower_of(tuned: TunedModel, edit: Edit) -> str:
    """Return the tower of an edit; empty if the model has one tower or the edit belongs to none."""
    tower = edit.place.name.partition(".")[0]
    return tower if tower in tuned.description.towers else ""


def _whole_reach(starts: dict[str, list[int]], depths: dict[str, int]) -> str:
    """Return how far back gradients travel, for each tower if there are several."""
    towers = [tower for tower in depths if tower] or [""]
    told = {tower: _reach_text(min(starts.get(tower, []), default=depths[tower]), depths[tower]) for tower in towers}
    return told[""] if "" in told else "; ".join(f"{tower}: {text}" for tower, text in told.items())


def make_plan(tuned: TunedModel, name: str) -> Plan:
    """Return the plan of one adapter."""
    adapter = tuned.adapter(name)
    depths = {tower: len(one.blocks) for tower, one in tuned.description.towers.items()}
    # for modules of a host that train and belong to no tower
    depths.setdefault("", 0)
    counted: set[int] = set()
    rows, starts = [], dict[str, list[int]]()
    for edit, key in zip(adapter.edits, adapter.keys, strict=True):
        node = adapter.get_submodule(key)
        there = list(adapter.inside(node))
        fresh = {id(p): p for p in there if p.requires_grad and id(p) not in counted}
        counted |= fresh.keys()
        tower = _tower_of(tuned, edit)
        start = reach_of(edit, depths[tower])
        starts.setdefault(tower, []).append(start)
        largest = max((tuple(p.shape) for p in there), key=lambda s: _size(s), default=())
        rows.append(
            PlanRow(
                place=edit.place.name,
                verb=edit.verb,
                layer=type(edit.layer).__name__ if edit.layer is not None else ", ".join(edit.parameters[:2]),
                shape=" x ".join(str(size) for size in largest),
                parameters=sum(p.numel() for p in fresh.values()),
                unmergeable=why_not(edit),
                reach=_reach_text(start, depths[tower]),
            )
        )
    trained = list(adapter.trained())
    inside = sum(p.numel() for key, p in trained if not key.startswith("head."))
    classifier = {id(p) for p in tuned.description.classifier.parameters()}
    own = {id(p) for _, p in trained}
    stands_in = {id(frozen) for frozen in adapter.unfrozen.frozen if frozen is not None}
    total = sum(p.numel() for p in tuned.backbone.parameters() if id(p) not in classifier | (own & stands_in))
    return Plan(
        name=name,
        methods=tuple(str(one) for one in tuned.placed(name)),
        rows=tuple(rows),
        trainable=inside,
        trainable_with_head=sum(p.numel() for _, p in trained),
        backbone_parameters=total,
        bytes_on_disk=sum(t.numel() * t.element_size() for t in tuned.adapter_state(name).values()),
        reach=_whole_reach(starts, depths),
        own_head=_own_head(tuned, name),
        tasks=tuned._wiring.switch.tasks.get(name, ()),
        passes=len(tuned.passes(name)),
    )


def _own_head(tuned: TunedModel, name: str) -> str | None:
    """Return what the model's own frozen classifier is, such as "classifier (48 -> 7)"."""
    own = own_head(tuned.description, tuned.adapter(name).head, [p for _, p in tuned.adapter(name).trained()])
    if own is None:
        return None
    last = [layer for layer in own.modules() if isinstance(layer, nn.Linear)][-1:]
    return f"classifier ({last[0].in_features} -> {last[0].out_features})" if last else "classifier"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
