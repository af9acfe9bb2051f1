"""Pairs of pictures as sentences of tokens: several examples of one visual task, and a last one to complete.

A sentence holds the tokens of picture, answer, picture, answer ... of one task; every picture is N tokens. All pictures
become tokens once, when the data set is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vpeft.backbones.picture_codec import PictureCodec
from vpeft.batch import Sample, as_sample
from vpeft.data.problems import DataError
from vpeft.data.target import JOIN
from vpeft.data.visual_tasks import VisualTask, seeded

Balance = Literal["none", "repeat", "augment"]
# Pictures that wait to become tokens together.
WAITING = 512


@dataclass(frozen=True)
class PictureMaps:
    """A transform that keeps an image's own size: image, and its maps -> float (3, H, W) in [0, 1], {kind: map}.

    Attributes:
        kinds: the kinds of maps in the order in which the data set has them.
    """

    kinds: tuple[str, ...]

    def __call__(self, image: Any, drawn: Any = None) -> Any:
        from torchvision.transforms.v2 import functional as transforms

        pixels = image if isinstance(image, Tensor) else transforms.pil_to_tensor(image.convert("RGB"))
        seen = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        if seen.shape[0] == 1:
            seen = seen.expand(3, -1, -1)
        if drawn is None:
            return seen
        named = drawn if isinstance(drawn, Mapping) else {self.kinds[0]: drawn}
        return seen, {kind: torch.as_tensor(one).as_subclass(Tensor) for kind, one in named.items()}


class VisualSentences:
    """Item i is a sentence of tokens (2 P N,): P - 1 pairs of a task as examples, then a pair of its own.

    In training the examples change from epoch to epoch, else they are fixed by i. Targets are `task`, the number of the
    visual task, and out of training also `answer`, the true picture (3, S, S), and `numbers`, its class numbers.

    Args:
        images: `images[i]` -> (float image (3, H, W), its maps by kind), as `PictureMaps` makes them; `labels`.
        tasks: the visual tasks.
        codec: makes tokens of pictures.
        pairs: P.
        classes: how many classes a mask tells apart.
        training: see above.
        limits: for some tasks, of how many images there are pairs in training.
        balance: what is done in training for tasks with fewer pairs than others: nothing, their pairs are repeated, or
            augmented copies are added, until all have as many.
    """

    def __init__(
        self,
        images: Any,
        tasks: Sequence[VisualTask],
        codec: PictureCodec,
        *,
        pairs: int,
        classes: int,
        training: bool,
        limits: Mapping[str, int] | None = None,
        balance: Balance = "none",
    ) -> None:
        count = len(images)
        if not count or not tasks:
            raise DataError(f"Sentences need images and visual tasks; there are {count} and {len(tasks)} of them.")
        self.images, self.tasks, self.codec = images, tuple(tasks), codec
        self.pairs, self.classes, self.training = pairs, classes, training
        self.labels: list[str] = list(getattr(images, "labels", []))
        self.seed = int(getattr(images, "seed", 0))
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        order = torch.randperm(count, generator=seeded("which images", self.seed)).tolist()
        kept = {
            one.name: sorted(order[: (limits or {}).get(one.name, count)] if training else range(count))
            for one in tasks
        }
        most = max(len(chosen) for chosen in kept.values())
        # (task, image, copy) of each pair, those of a task one behind the other
        self.rows: list[tuple[int, int, int]] = []
        self._spans: list[range] = []
        for number, one in enumerate(self.tasks):
            chosen, first = kept[one.name], len(self.rows)
            total = most if training and balance != "none" else len(chosen)
            for place in range(total):
                turn, which = divmod(place, len(chosen))
                self.rows.append((number, chosen[which], turn if balance == "augment" else 0))
            self._spans.append(range(first, len(self.rows)))
        self.tokens, self._answers, self._numbers = self._encoded()

    def _encoded(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Tokens (rows, 2, N) of picture and answer; out of training also the answers and the class numbers."""
        places: dict[tuple[int, int, int], int] = {}
        by_image: dict[int, list[tuple[int, int, int]]] = {}
        for row in self.rows:
            if row not in places:
                places[row] = len(places)
                by_image.setdefault(row[1], []).append(row)
        made = torch.zeros(len(places), 2, self.codec.count, dtype=torch.int64)
        answers: dict[int, Tensor] = {}
        numbers: dict[int, Tensor] = {}
        waiting: list[Tensor] = []
        at: list[int] = []

        def flush() -> None:
            if at:
                made[at] = self.codec.encoded(torch.stack(waiting)).reshape(len(at), 2, -1)
            waiting.clear()
            at.clear()

        side = self.codec.side
        for index, rows in by_image.items():
            sample = as_sample(self.images[index])
            drawn: Mapping[str, Tensor] = sample.target if isinstance(sample.target, Mapping) else {}
            for row in rows:
                task = self.tasks[row[0]]
                pair = task.pair(sample.input, drawn, side, self.classes, sample.id or str(index), row[2])
                waiting.extend(pair)
                at.append(places[row])
                if not self.training:
                    answers[places[row]], numbers[places[row]] = pair[1], task.numbers(drawn, side)
                if len(at) >= WAITING:
                    flush()
        flush()
        chosen = [places[row] for row in self.rows]
        if self.training:
            return made[chosen], [], []
        return made[chosen], [answers[place] for place in chosen], [numbers[place] for place in chosen]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self.rows))[index]
        number, image, _ = self.rows[index]
        examples = self.examples(number, index)
        sentence = self.tokens[[*examples, index]].flatten()
        target: dict[str, Any] = {"task": number}
        if not self.training:
            target |= {"answer": self._answers[index], "numbers": self._numbers[index]}
        return Sample(sentence, target, f"{self._name(image)} {self.tasks[number].name}")

    def _name(self, image: int) -> str:
        items = getattr(self.images, "items", None)
        return str(image) if items is None else str(items[image].name)

    def examples(self, number: int, index: int | None = None) -> list[int]:
        """The rows of P - 1 pairs of a task, to come before row `index`, which is among them only where it is alone."""
        span = self._spans[number]
        epoch = int(self._epoch) if self.training else 0
        generator = seeded("examples", self.seed, epoch, number, index)
        found = [row for row in (torch.randperm(len(span), generator=generator) + span.start).tolist() if row != index]
        while len(found) < self.pairs - 1:
            found += found or [span.start]
        return found[: self.pairs - 1]

    def prompts(self) -> dict[str, list[int]]:
        """For each visual task the tokens of P - 1 pairs, for pictures that come without examples."""
        return {
            task.name: self.tokens[self.examples(number)].flatten().tolist() for number, task in enumerate(self.tasks)
        }

    def counts(self) -> dict[str, int]:
        """Pairs by visual task."""
        return {task.name: len(span) for task, span in zip(self.tasks, self._spans, strict=True)}

    def set_epoch(self, epoch: int) -> None:
        """Let the examples of training be drawn for `epoch`, in data-loading processes too."""
        self._epoch.fill_(epoch)


def kinds_of(tasks: Sequence[VisualTask]) -> str:
    """The kind of target that a data set must have for these tasks: maps joined by +, or "label" where none is needed.

    Labels are not looked at.
    """
    return JOIN.join(dict.fromkeys(one.kind for one in tasks if one.kind)) or "label"
