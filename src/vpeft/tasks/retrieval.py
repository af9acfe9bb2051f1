"""Images of one class near each other, also of classes that training has never seen: deep metric learning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from ..batch import Batch, Sample, as_sample
from ..data.image_set import ImageSet
from ..head import HeadText, make_head
from ..heads.embedding import EmbeddingHead
from ..task import BadOption, Leading, Prediction, Task, UnsuitableTargets, register_task
from .metric_learning import checked, learnt_by, miner, sampled, value_of
from .nearest_neighbours import retrieval_scores
from .targets import refusal, told_targets

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone

# The number of an image's role in its target; see `Sought`.
ROLES = {"": 0, "query": 1, "gallery": 2}
NONE = "none"
# How many numbers of an embedding a row of a prediction shows.
SHOWN = 4


@register_task("retrieval")
class Retrieval(Task):
    """An embedding of length one for each image (B, E), near to those of the same class.

    Trained and tested classes have nothing in common: data without splits are split by classes. Each test image is a
    query, the others are its gallery, or the data say which images are which. Losses, miners and samplers are those of
    pytorch-metric-learning (Musgrave et al., arXiv 2008.09164). Tensors that a loss learns, such as proxies, train at
    `loss_rate` times the head's rate; checkpoints hold them and adapter files do not, since no answer needs them.

    A batch should hold several images of several classes: choose a sampler, and a batch that is a multiple of its m.
    The parts of an accumulated batch have losses of their own.
    """

    split_by: ClassVar[Literal["images", "classes"]] = "classes"

    dimensions: int = Field(default=512, gt=1)
    """E, numbers of an embedding"""
    loss_kind: str = Field(default="multi_similarity", alias="loss")
    """loss of pytorch-metric-learning, such as proxy_anchor, multi_similarity, nt_xent(temperature=0.1),
    triplet_margin; none: the method brings the loss"""
    miner_kind: str = Field(default=NONE, alias="miner")
    """miner of pytorch-metric-learning, which chooses pairs or triplets: multi_similarity, batch_hard; none: all"""
    sampler: str = NONE
    """sampler of pytorch-metric-learning, such as m_per_class(m=4); none: each image once in an epoch"""
    loss_rate: float = Field(default=100.0, gt=0)
    """factor of the learning rate of what the loss learns, such as proxies; 100 in Proxy-Anchor's code"""
    head_kind: HeadText = Field(default="embedding", alias="head")
    """the head: embedding, with its options"""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """the K of R@K, in rising order; the first leads"""
    copies: Literal["count", "leave_out"] = "count"
    """whether an image with the same content as a query counts as found, as in published scores, or is left out of its
    gallery"""

    @field_validator("loss_kind", "miner_kind", "sampler")
    @classmethod
    def _known(cls, text: str, info: Any) -> str:
        part: Any = {"loss_kind": "loss", "miner_kind": "miner", "sampler": "sampler"}[info.field_name]
        return text if text == NONE else checked(text, part)

    @field_validator("recall_at")
    @classmethod
    def _rising(cls, places: tuple[int, ...]) -> tuple[int, ...]:
        if not places or places[0] < 1 or any(a >= b for a, b in pairwise(places)):
            raise ValueError("the K of R@K rise, from 1 on")
        return places

    @property
    def leading(self) -> Leading:
        """R@K with the smallest K."""
        return Leading(f"recall_at_{self.recall_at[0]}")

    # -- what is read -------------------------------------------------------------------------------------------------

    @property
    def data_labels(self) -> None:
        """Classes that training has never seen are what is scored."""
        return None

    @property
    def reads_alike(self) -> tuple[Any, ...]:
        """Runs share their samples where the sampler draws alike and copies are told alike."""
        return (self.name, self.sampler, self.copies)

    @property
    def reorders(self) -> bool:
        """Whether a sampler draws."""
        return self.sampler != NONE

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names, with what the loss learns."""
        head = make_head(self.head_kind, backbone, width, self.dimensions)
        if self.loss_kind == NONE:
            return head
        learnt = learnt_by(self.loss_kind, max(2, len(self.labels)), self.dimensions)
        if learnt:
            self._require_labels()
            if not isinstance(head, EmbeddingHead):
                raise BadOption(
                    f"The loss {self.loss_kind} learns {', '.join(learnt)}, which the head {self.head_kind} cannot"
                    " keep. Take the head embedding, or a loss without."
                )
            head.learn_too(learnt, self.loss_rate)
        return head

    def _require_labels(self) -> None:
        if len(self.labels) < 2:
            raise UnsuitableTargets(
                f"The loss {self.loss_kind} has tensors for each class, and the classes are not known yet. Give them,"
                " labels=(...), or bind the task to data that name theirs, task.bind(train)."
            )

    def bind(self, train: Any) -> Self:
        """With the names of the classes that training has; numbers where the data have no names."""
        if self.labels:
            return self
        names = getattr(train, "labels", None) or getattr(train, "classes", None)
        if isinstance(names, (list, tuple)) and all(isinstance(one, str) for one in names):
            return self.model_copy(update={"labels": tuple(names)})
        told = told_targets(train)
        if told is None:
            return self
        return self.model_copy(update={"labels": tuple(map(str, range(1 + max(int(one) for one in told))))})

    def dataset(self, images: Any, training: bool) -> Any:
        """For training, the images with the numbers of the classes that they have; else see `Sought`."""
        if training:
            return images.relabelled(images.labels_present) if isinstance(images, ImageSet) else images
        return Sought(images, self.copies == "leave_out")

    def check(self, train: Any) -> None:
        """Refuse targets that are no class numbers, and training images of a single class."""
        targets = told_targets(train)
        if targets is None:
            if self.sampler != NONE:
                raise UnsuitableTargets(
                    f"sampler = {self.sampler!r} needs the classes of all samples before the first step. Give the data"
                    " set an attribute `targets`, a list with the class number of each sample."
                )
            return
        for target in targets[:1]:
            self._number(target)
        if not isinstance(train, Sought) and len({self._number(one) for one in targets}) < 2:
            raise UnsuitableTargets("Retrieval needs training images of at least two classes; there is one.")

    def _number(self, target: Any) -> int:
        if isinstance(target, Tensor):
            target = target[0] if target.dim() == 1 and len(target) == 3 else target
            if target.dim() or target.is_floating_point():
                raise refusal(self, target)
        elif isinstance(target, (float, str, Mapping, list, tuple)) or target is None:
            raise refusal(self, target)
        return int(target)

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no class numbers, and outputs that are no embeddings."""
        targets = batch.targets
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dim() > 2:
            raise refusal(self, targets[0] if isinstance(targets, (Tensor, list)) and len(targets) else targets)
        if targets.dim() == 2 and targets.shape[1] != 3:
            raise refusal(self, targets[0])
        found = _embeddings(outputs)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(targets):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UnsuitableTargets(f"Retrieval needs one embedding for each image, and the model gives {shape}.")

    def order(self, train: Any, shuffled: list[int], epoch_seed: int) -> list[int]:
        """As many samples as there are, as the sampler draws them."""
        told = told_targets(train)
        if self.sampler == NONE or told is None:
            return shuffled
        return sampled(self.sampler, [self._number(one) for one in told], len(shuffled), epoch_seed)

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The chosen loss of a batch; nothing where the method brings it."""
        if self.loss_kind == NONE:
            return {}
        embeddings = _embeddings(outputs).float()
        numbers = _classes(batch.targets).to(embeddings.device)
        learnt = {k: v for k, v in outputs.items() if k != "embeddings"} if isinstance(outputs, Mapping) else {}
        pairs = None if self.miner_kind == NONE else miner(self.miner_kind)(embeddings, numbers)
        name = self.loss_kind.partition("(")[0].strip()
        return {name: value_of(self.loss_kind, embeddings, numbers, len(self.labels), learnt, pairs)}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `RetrievalMetric`."""
        return RetrievalMetric(self.recall_at)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The embedding of each sample, whole in the values for programs."""
        found = _embeddings(outputs).float()
        ids = batch.ids or tuple(str(number) for number in range(len(found)))
        said = []
        for name, row in zip(ids, found.tolist(), strict=True):
            first = ", ".join(f"{value:.3f}" for value in row[:SHOWN])
            said.append(Prediction(name, ({"embedding": f"{first}, ... ({len(row)})"},), {"embedding": row}))
        return said

    def nearest(self, outputs: Any, batch: Batch, gallery: Any, names: Sequence[str], count: int) -> list[Prediction]:
        """The gallery's images by falling similarity, the cosine of the two embeddings; a query is not its own."""
        similar = _unit(_embeddings(outputs)) @ _unit(_embeddings(gallery)).T
        ids = batch.ids or tuple(str(number) for number in range(len(similar)))
        said = []
        for name, row in zip(ids, similar, strict=True):
            order = row.sort(descending=True, stable=True).indices[: count + 1].tolist()
            rows = tuple({"image": names[k], "similarity": float(row[k])} for k in order if names[k] != name)
            said.append(Prediction(name, rows[:count], {}))
        return said


class Sought(torch.utils.data.Dataset[Sample]):
    """Images to be found or looked for. It has no names of classes, since they are not those of training.

    The target of an image is its class number; where images have roles or copies are told apart, int64 (3,): class
    number, role (0 query and gallery, 1 query, 2 gallery), and a number that images of equal content share.

    Args:
        images: an `ImageSet`, or another data set of (image, class number).
        tell_copies: whether contents are compared; it reads all files of an `ImageSet` once.
    """

    def __init__(self, images: Any, tell_copies: bool = False) -> None:
        self.images = images
        items = images.items if isinstance(images, ImageSet) else ()
        self._more: list[tuple[int, int]] | None = None
        if tell_copies or any(item.role for item in items):
            if not items:
                raise UnsuitableTargets("Copies are told apart in vpeft's own data sets alone: copies = count.")
            seen: dict[str, int] = {}
            keys = [hashlib.sha256(item.picture.content()).hexdigest() if tell_copies else item.name for item in items]
            self._more = [
                (ROLES[item.role], seen.setdefault(key, len(seen))) for item, key in zip(items, keys, strict=True)
            ]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def targets(self) -> Any:
        """The target of each image; None where the data set does not tell them."""
        told = told_targets(self.images)
        if told is None or self._more is None:
            return told
        return [torch.tensor([int(one), *more]) for one, more in zip(told, self._more, strict=True)]

    def __getitem__(self, index: int) -> Sample:
        sample = as_sample(self.images[index])
        if self._more is None:
            return sample
        return Sample(sample.input, torch.tensor([int(sample.target), *self._more[index]]), sample.id)


def _embeddings(outputs: Any) -> Any:
    return outputs["embeddings"] if isinstance(outputs, Mapping) else outputs


def _classes(targets: Tensor) -> Tensor:
    return targets[:, 0] if targets.dim() == 2 else targets


def _unit(embeddings: Tensor) -> Tensor:
    return functional.normalize(embeddings.float(), dim=1)


class RetrievalMetric(Metric):
    """Scores over all queries; see `retrieval_scores`. Details: `queries`, how many counted, and `alone`, how many had
    no image of their class in the gallery and did not."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    embeddings: list[Tensor]
    targets: list[Tensor]

    def __init__(self, recall_at: Sequence[int]) -> None:
        super().__init__()
        self.recall_at = tuple(recall_at)
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Keep a batch: embeddings (B, E), targets (B,) or (B, 3)."""
        self.embeddings.append(_unit(_embeddings(outputs)))
        self.targets.append(batch.targets)

    def compute(self) -> dict[str, Any]:
        """Values by name, and the details."""
        found, targets = (
            torch.cat(part) if isinstance(part, list) else part for part in (self.embeddings, self.targets)
        )
        numbers = _classes(targets)
        if targets.dim() == 1:
            own = torch.arange(len(found))
            scores = retrieval_scores(found, numbers, found, numbers, self.recall_at, own=own)
            return self._told(scores, len(found))
        asked, offered = (targets[:, 1] != ROLES[other] for other in ("gallery", "query"))
        places = torch.where(offered, offered.cumsum(0) - 1, torch.full_like(numbers, -1))
        scores = retrieval_scores(
            found[asked],
            numbers[asked],
            found[offered],
            numbers[offered],
            self.recall_at,
            own=places[asked],
            query_copies=targets[asked, 2],
            gallery_copies=targets[offered, 2],
        )
        return self._told(scores, int(asked.sum()))

    def _told(self, scores: dict[str, float], asked: int) -> dict[str, Any]:
        counted = int(scores.pop("queries"))
        return {**scores, "of": {"queries": counted, "alone": asked - counted}}
