"""The cache of queries: what the frozen model sees in each image is computed once, for methods that choose by it.

L2P, DualPrompt and CODA-Prompt run the frozen model on every image before they run the adapted one. Where an image is
the same in every epoch, so is its query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vpeft.acceleration.acceleration import NotApplicable
from vpeft.acceleration.equivalence import TOLERANCE, TOLERANCE_16
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.prefix_cache import Situation
from vpeft.acceleration.prefix_cut import Cut, drawing_layer
from vpeft.acceleration.prefix_store import mebibytes, room
from vpeft.acceleration.same_images import why_not_the_same
from vpeft.data.image_set import ImageSet
from vpeft.injection.tuned_model import TunedModel

NAME = "cached_query"
SAMPLE = 4


class KnownQueries:
    """The queries (D,) of images by their names; each is kept when it is first computed.

    Args:
        names: of all images that it may keep; a batch with another image is computed each time. Where two images have
            one name, none is kept.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._rows = {name: row for row, name in enumerate(names)} if len(set(names)) == len(names) else {}
        self._there: set[int] = set()
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self._there)

    def query(self, names: Sequence[str], compute: Callable[[], Tensor]) -> Tensor:
        """The queries (B, D) of a batch: `compute()`, or what it gave before.

        Args:
            names: of the images of the batch.
            compute: runs the frozen model on the whole batch.
        """
        rows = [self._rows.get(name, -1) for name in names]
        if not rows or -1 in rows:
            return compute()
        if self._kept is not None and self._there.issuperset(rows):
            return self._kept[torch.tensor(rows, device=self._kept.device)]
        found = compute()
        if len(found) != len(rows):
            return found  # a clip whose frames pass one by one
        if self._kept is None:
            self._kept = found.new_empty((len(self._rows), *found.shape[1:]))
        self._kept[torch.tensor(rows, device=found.device)] = found
        self._there.update(rows)
        return found


@contextmanager
def keeping(model: nn.Module, queries: KnownQueries) -> Iterator[None]:
    """Let a model keep its queries of images that are the same each time, where its method reads queries.

    Args:
        model: in evaluation mode, whose frozen part stays the same from one use of `queries` to the next.
        queries: of these images alone.
    """
    if not isinstance(model, TunedModel) or model.active not in model._wiring.switch.asks_query:
        yield
        return
    before, model._queries = model._queries, queries
    try:
        yield
    finally:
        model._queries = before


def remember(tuned: TunedModel, patches: Patches, situation: Situation) -> tuple[str, bool]:
    """Let the model keep its queries until `patches` are undone; return a line of text, and whether bits are equal.

    Raises:
        NotApplicable: with the reason.
    """
    if tuned.active not in tuned._wiring.switch.asks_query:
        raise NotApplicable("the method does not read the frozen model's own feature of each image")
    if situation.epochs < 2:
        raise NotApplicable("in a single epoch no query is computed twice")
    if situation.mixes is not None:
        raise NotApplicable(situation.mixes)
    if situation.stream is not None or not isinstance(situation.train, ImageSet):
        raise NotApplicable("only vpeft's own image sets name each image of a batch")
    changing = why_not_the_same(situation.train)
    if changing is not None:
        raise NotApplicable(changing)
    if tuned.description.frames_enter is not None:
        raise NotApplicable("the frames of clips pass one by one")
    whole = Cut(len(tuned.description.blocks), True, [], [], [], None)
    drawing = drawing_layer(tuned, whole)
    if drawing is not None:
        raise NotApplicable(f"{drawing} is random or gathers statistics, so a query is another one each time")
    sets = [situation.train]
    val = situation.val
    if isinstance(val, ImageSet) and val is not situation.train and why_not_the_same(val) is None:
        sets.append(val)
    names = [item.name for images in sets for item in images.items]
    if len(set(names)) < len(names):
        names = [item.name for item in situation.train.items]
    if len(set(names)) < len(names):
        raise NotApplicable("two images have one name")
    size = len(names) * tuned.description.query.width * 4
    allowed, where = room(situation.gib, None)
    if size > allowed:
        raise NotApplicable(f"the queries take {mebibytes(size)}, and {mebibytes(allowed)} {where}")
    worst = _difference(tuned, situation)
    if not worst <= (TOLERANCE if situation.precision == "fp32" else TOLERANCE_16):
        raise NotApplicable(f"the query of an image differs by {worst:.0e} of its size in another batch")
    tuned._queries = KnownQueries(names)

    def forget() -> None:
        tuned._queries = None

    patches.on_undo(forget)
    equal = "the same bits in another batch" if worst == 0 else f"equal to {worst:.0e} in another batch"
    return f"the frozen model's feature of {len(names)} images is computed once, {mebibytes(size)}, {equal}", worst == 0


@torch.no_grad()
def _difference(tuned: TunedModel, situation: Situation) -> float:
    """The largest relative difference of an image's query where its neighbours and its place in the batch change."""
    count = min(SAMPLE, len(situation.train))
    images = torch.stack([situation.train[index][0] for index in range(count)])
    images = images.to(next(tuned.parameters()).device)
    with situation.autocast():
        one, other = tuned._query((images,), {}), tuned._query((images.flip(0),), {}).flip(0)
    return float((one - other).float().abs().max() / one.float().abs().max().clamp(min=1e-12))
