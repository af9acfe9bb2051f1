"""A classifier made of words: an image belongs to the class whose name, as a text, is most similar to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from ..backbones.features import Features
from ..backbones.host import Towers
from ..backbones.points import MissingPlace
from ..backbones.texts import TextSpec
from ..head import BadHead, Head

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..batch import Batch

IMAGE, TEXT = "image", "text"
PLAIN = "a photo of a {}."
# CLIP's own code joins the words of a name by spaces before it fills a template.
JOINED = str.maketrans("_", " ")


def text_spec(backbone: Backbone) -> TextSpec:
    """The inputs of the text tower of an image-text model.

    Raises:
        MissingPlace: the model is no such model.
    """
    towers = backbone.towers
    if isinstance(backbone, Towers) and set(towers) == {IMAGE, TEXT}:
        spec = towers[TEXT].inputs
        if isinstance(spec, TextSpec):
            return spec
    raise MissingPlace(
        f"{backbone.facts.architecture} has no image tower beside a text tower, which names of classes are compared"
        " with. Take a whole image-text model: an open_clip CLIP, CLIPModel, SiglipModel, or pocket_clip."
    )


def filled(template: str, name: str) -> str:
    """A template with a name where its `{}` is."""
    return template.replace("{}", name.translate(JOINED))


class ClassNames(Head):
    """logits (B, C) = scale cos(f, w_c) + bias for the image feature f and the text feature w_c of each class.

    w_c is the mean over the templates of the normalised features of the text tower for the filled templates, normalised
    again (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020,
    section 3.1.4). Scale and bias are those of the model. There is nothing to train.

    Args:
        names: of the classes, in their order.
        templates: texts with `{}` where the name goes; several make an ensemble.
        length: tokens in a row of the text tower.
    """

    kind = "class_names"
    options = ("templates",)
    reads = (f"{IMAGE}.outlet", f"{TEXT}.outlet")
    ids: Tensor

    def __init__(self, names: Sequence[str], templates: Sequence[str] = (PLAIN,), length: int = 77) -> None:
        super().__init__()
        broken = [one for one in templates if "{}" not in one]
        if broken or not templates:
            raise BadHead(f"A template holds {{}} where the name of a class goes; {broken[:1] or 'none'} does not.")
        if len(names) < 1:
            raise BadHead("There are no names of classes.")
        self.names, self.templates = tuple(names), tuple(templates)
        self.register_buffer("ids", torch.zeros(len(templates) * len(names), length, dtype=torch.int64))

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Self:
        """Refuses: the names of the classes are not known here, `on_towers` and the task know them.

        Raises:
            MissingPlace: the model has no two towers that share a space.
            BadHead: in every other case.
        """
        text_spec(backbone)
        raise BadHead(
            "The head 'class_names' is made of the names of the classes. Take the task classification_by_name, which"
            " brings it, or make it with ClassNames.on_towers(backbone, names)."
        )

    @classmethod
    def on_towers(cls, backbone: Backbone, names: Sequence[str], templates: Sequence[str] = (PLAIN,)) -> Self:
        """The head for an image-text model, with the tokens of all filled templates.

        Raises:
            MissingPlace: the model has no two towers that share a space.
            NoTokenizer, TooLongText, WrongTokenizer: the names cannot be turned into tokens of the model.
        """
        spec = text_spec(backbone)
        made = cls(list(names), list(templates), spec.length)
        made.set_ids(spec.ids(made.texts))
        return made

    @classmethod
    def of_ids(cls, names: Sequence[str], ids: Tensor) -> Self:
        """The head for token numbers (C, L) that were made elsewhere, one row for each name."""
        made = cls(list(names), ["{}"], int(ids.shape[1]))
        made.set_ids(ids)
        return made

    @property
    def texts(self) -> list[str]:
        """Every filled template: all names in the first one, then all in the next."""
        return [filled(template, name) for template in self.templates for name in self.names]

    def set_ids(self, ids: Tensor) -> None:
        """Give the head its token numbers (templates * names, L).

        Raises:
            BadHead: they have another shape.
        """
        if ids.shape != self.ids.shape:
            raise BadHead(f"The head holds token numbers {tuple(self.ids.shape)}, and was given {tuple(ids.shape)}.")
        with torch.no_grad():
            self.ids.copy_(ids)

    def own_inputs(self) -> Mapping[str, Tensor]:
        """The token numbers, for the text tower."""
        return {TEXT: self.ids}

    def class_features(self, texts: Tensor) -> Tensor:
        """Features (R, E) of all filled templates -> w (C, E); (B, R, E), one set for each image, -> (B, C, E)."""
        each = functional.normalize(texts, dim=-1)
        each = each.reshape(*each.shape[:-2], len(self.templates), len(self.names), each.shape[-1])
        return functional.normalize(each.mean(dim=-3), dim=-1)

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """(B, E) and (R, E) or (B, R, E) -> (B, C)."""
        images = functional.normalize(features[f"{IMAGE}.outlet"], dim=-1)
        names = self.class_features(features[f"{TEXT}.outlet"]).to(images.dtype)
        cosines = images @ names.T if names.dim() == 2 else torch.einsum("be,bce->bc", images, names)
        logits = features["scale"] * cosines
        return logits + features["bias"] if "bias" in set(features) else logits
