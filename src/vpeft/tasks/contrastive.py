"""Images and texts that belong together, learnt by comparing all with all, and judged by retrieval both ways."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from ..batch import Batch, Sample, as_sample, stacked
from ..heads.class_names import text_spec
from ..heads.image_text import ImageTextHead
from ..task import Leading, Prediction, Task, UnsuitableTargets, register_task

if TYPE_CHECKING:
    from torch import nn

    from ..backbones.backbone import Backbone

# How many texts a prediction lists.
SHOWN = 10


@register_task("contrastive", short="image_text_retrieval")
class Contrastive(Task):
    """Pairs of an image and a text, for an image-text model whose towers are tuned: InfoNCE or a sigmoid.

    InfoNCE (CLIP, arXiv 2103.00020): half the sum of the cross-entropies of each image among the batch's texts and of
    each text among the batch's images. sigmoid (SigLIP, arXiv 2303.15343): for each image the sum over all texts of
    -log sigmoid(y (scale cos + bias)), y = 1 for its own text and -1 else; the mean over the images.

    Over several processes, texts and images of all are compared, with gradients. The parts of an accumulated batch have
    losses of their own. Of an image with several captions, training draws one, and scores use all.
    """

    target_kind: ClassVar[str] = "caption"
    stacks_inputs: ClassVar[bool] = False

    loss_kind: Literal["infonce", "sigmoid"] = Field(default="infonce", alias="loss")
    """what is minimised"""
    equal_captions: Literal["positive", "negative"] = "positive"
    """whether images with the same caption in a batch belong to each other's texts too, or only to their own"""
    recall_at: tuple[int, ...] = (1, 5, 10)
    """the K of R@K, in rising order"""

    @field_validator("recall_at")
    @classmethod
    def _rising(cls, places: tuple[int, ...]) -> tuple[int, ...]:
        if not places or places[0] < 1 or any(a >= b for a, b in pairwise(places)):
            raise ValueError("the K of R@K rise, from 1 on")
        return places

    @property
    def leading(self) -> Leading:
        """The mean of all R@K, both ways."""
        return Leading("mean_recall")

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The features of both towers; `MissingPlace` for a model that is no image-text model."""
        text_spec(backbone)
        return ImageTextHead()

    def dataset(self, images: Any, training: bool) -> Any:
        """The images as pairs; in training each with one of its captions."""
        return Pairs(images, training)

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Images (B, 3, H, W) and all their captions as words, the captions of an image one after the other.

        Targets are the captions of each image.

        Raises:
            UnsuitableTargets: a sample has no caption.
        """
        whole = [as_sample(sample) for sample in samples]
        texts = [_texts(sample) for sample in whole]
        ids = tuple(sample.id for sample in whole)
        inputs = {"image": stacked([sample.input for sample in whole]), "text": [one for of in texts for one in of]}
        return Batch(inputs, texts, ids if any(ids) else (), size=len(whole))

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean over the images (and texts) of this process.

        Raises:
            UnsuitableTargets: images and texts are not pairs.
        """
        images, texts = outputs["image"].float(), outputs["text"].float()
        if len(images) != len(texts):
            raise UnsuitableTargets(
                f"{len(images)} images and {len(texts)} texts make no pairs. In training each image has one text; give"
                " the data by task.dataset(data, training=True), which draws one of several captions."
            )
        captions = [of[0] for of in batch.targets]
        all_images, all_texts, all_captions, first = _gathered(images, texts, captions)
        same = self._same(captions, all_captions, first).to(images.device)
        scale, bias = outputs["scale"].float(), outputs["bias"].float()
        of_images = scale * images @ all_texts.T + bias
        if self.loss_kind == "sigmoid":
            signs = 2 * same - 1
            return {"sigmoid": -functional.logsigmoid(signs * of_images).sum(1).mean()}
        shares = same / same.sum(1, keepdim=True)
        of_texts = scale * texts @ all_images.T + bias
        both = functional.cross_entropy(of_images, shares) + functional.cross_entropy(of_texts, shares)
        return {"infonce": 0.5 * both}

    def _same(self, own: Sequence[str], everyones: Sequence[str], first: int) -> Tensor:
        """(B, all) of 0 and 1: which texts belong to each of the own images; `first` is the number of the first."""
        if self.equal_captions == "positive":
            return torch.tensor([[float(one == other) for other in everyones] for one in own])
        return functional.one_hot(torch.arange(first, first + len(own)), len(everyones)).float()

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `PairScores`."""
        return PairScores(self.recall_at)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The texts of the batch for each image, the most similar first."""
        cosines = outputs["image"].detach().float() @ outputs["text"].detach().float().T
        texts = [one for of in batch.targets for one in of]
        found = []
        for row, values in enumerate(cosines):
            best = values.sort(descending=True, stable=True).indices[:SHOWN].tolist()
            rows = tuple({"text": texts[number], "cosine": float(values[number])} for number in best)
            found.append(Prediction(batch.ids[row] if batch.ids else str(row), rows))
        return found


class Pairs:
    """Images with captions as pairs.

    Args:
        images: a data set of (image, captions).
        training: whether one caption of each image is drawn, and not all are given.
    """

    def __init__(self, images: Any, training: bool) -> None:
        self.images, self.training = images, training
        self.labels: list[str] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        sample = as_sample(self.images[index])
        texts = _texts(sample)
        if self.training and len(texts) > 1:
            texts = (texts[int(torch.randint(len(texts), ()))],)
        return Sample(sample.input, texts, sample.id)

    def set_epoch(self, epoch: int) -> None:
        """Tell the images which epoch begins."""
        tell = getattr(self.images, "set_epoch", None)
        if callable(tell):
            tell(epoch)


def _texts(sample: Sample) -> tuple[str, ...]:
    told = (sample.target,) if isinstance(sample.target, str) else sample.target
    if not isinstance(told, (tuple, list)) or not told or not all(isinstance(one, str) for one in told):
        raise UnsuitableTargets(
            f"Contrastive learning wants a text, or several, beside each image; {sample.id or 'a sample'} has"
            f" {str(sample.target)[:60]!r}. For class numbers take the task classification_by_name."
        )
    return tuple(told)


def _gathered(images: Tensor, texts: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor, list[str], int]:
    """Features and captions of all processes, and the number of this one's first; gradients flow to each.

    Raises:
        UnsuitableTargets: the processes have batches of different sizes.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return images, texts, list(captions), 0
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, list(captions))
    if len({len(one) for one in told}) > 1:
        raise UnsuitableTargets(
            f"The processes have batches of {', '.join(str(len(one)) for one in told)} pairs, and features are compared"
            " between all. Set drop_last = true."
        )
    every = [torch.cat(dist_nn.all_gather(one.contiguous())) for one in (images, texts)]  # type: ignore[no-untyped-call]
    return every[0], every[1], [one for of in told for one in of], dist.get_rank() * len(captions)


class PairScores(Metric):
    """R@K both ways: the share of images that have one of their texts among the K most similar, and of texts.

    Values are `text_r1` ... (texts found for an image), `image_r1` ... (the image found for a text), and their mean
    `mean_recall`. All images and texts of the data are compared; where two are equally similar, the right one counts
    as the later.
    """

    full_state_update = False
    higher_is_better = True

    images: list[Tensor]
    texts: list[Tensor]
    counts: list[Tensor]

    def __init__(self, recall_at: Sequence[int] = (1, 5, 10)) -> None:
        super().__init__()
        self.recall_at = tuple(recall_at)
        for name in ("images", "texts", "counts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Keep the features of a batch, and how many texts each image has."""
        self.images.append(outputs["image"].float())
        self.texts.append(outputs["text"].float())
        self.counts.append(torch.tensor([len(of) for of in batch.targets]))

    def compute(self) -> dict[str, Any]:
        """Values by name, from 0 to 1."""
        images, texts, counts = (dim_zero_cat(one) for one in (self.images, self.texts, self.counts))
        owner = torch.repeat_interleave(torch.arange(len(images), device=images.device), counts.to(images.device))
        of_images = torch.full((len(images),), len(texts), device=images.device)
        of_texts = torch.empty(len(texts), dtype=torch.int64, device=images.device)
        for start in range(0, len(texts), 1024):
            some = slice(start, start + 1024)
            cosines = texts[some] @ images.T
            own = cosines.gather(1, owner[some, None])
            of_texts[some] = (cosines >= own).sum(1) - 1
        for start in range(0, len(images), 1024):
            cosines = images[start : start + 1024] @ texts.T
            mine = owner[None] == torch.arange(start, start + len(cosines), device=images.device)[:, None]
            best = cosines.masked_fill(~mine, -2.0).amax(1, keepdim=True)
            of_images[start : start + 1024] = ((cosines >= best) & ~mine).sum(1)
        found: dict[str, Any] = {}
        for name, places in (("text", of_images), ("image", of_texts)):
            found |= {f"{name}_r{k}": float((places < k).double().mean()) for k in self.recall_at}
        return {"mean_recall": sum(found.values()) / len(found), **found}
