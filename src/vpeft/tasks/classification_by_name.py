"""One label out of K for each image, told by the similarity of the image and the names of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator
from torch import nn

from ..errors import need_extra
from ..head import BadHead
from ..heads.class_names import PLAIN, ClassNames
from ..task import register_task
from .classification import Classification, TooFewLabels

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone

# Ensembles that open_clip ships under these names: 7 and 80 templates of CLIP's own zero-shot evaluation.
ENSEMBLES = {"simple": "SIMPLE_IMAGENET_TEMPLATES", "imagenet": "OPENAI_IMAGENET_TEMPLATES"}


@register_task("classification_by_name", short="names")
class ClassificationByName(Classification):
    """One label out of K by its name: for an image-text model, with or without training, with few or many images.

    logits = scale cos(image, text of the name), learnt by cross-entropy through whatever methods are on the towers, and
    judged as classification. Without training it is zero-shot classification. The classes may be others afterwards:
    `with_names`.
    """

    head_kind: Literal["class_names"] = Field(default="class_names", alias="head")
    """the head: names of the classes as texts"""
    templates: tuple[str, ...] = (PLAIN,)
    """texts with {} for the name; several are an ensemble; `simple` and `imagenet` stand for CLIP's 7 and 80"""
    names: tuple[str, ...] = ()
    """words for the labels, in their order, where the labels themselves say nothing; the labels by default"""

    def __init__(self, labels: Sequence[str] | None = None, /, **options: Any) -> None:
        """`ClassificationByName(["ant", "bee"])`, or by name with further options."""
        super().__init__(labels, **options)

    @field_validator("templates")
    @classmethod
    def _with_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not templates or any(one not in ENSEMBLES and "{}" not in one for one in templates):
            raise ValueError(f"a template holds {{}} where the name goes, or is one of {', '.join(ENSEMBLES)}")
        return templates

    @property
    def texts(self) -> tuple[str, ...]:
        """The templates, each name of an ensemble replaced by its templates.

        Raises:
            MissingExtra: an ensemble is asked for, and open_clip is not installed.
        """
        found: list[str] = []
        for one in self.templates:
            if one in ENSEMBLES:
                shipped: Any = need_extra("open_clip", "clip")
                found += [make("{}") for make in getattr(shipped, ENSEMBLES[one])]
            else:
                found.append(one)
        return tuple(found)

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The classifier made of the names of the labels.

        Raises:
            MissingPlace: the model is no image-text model.
            NoTokenizer, TooLongText, WrongTokenizer: the names cannot be turned into tokens of the model.
            TooFewLabels: no labels are known yet.
        """
        if not self.labels:
            raise TooFewLabels(
                "The names of the classes are not known yet. Give them, ClassificationByName(names), or bind the task"
                " to data that name theirs, task.bind(train)."
            )
        if self.names and len(self.names) != len(self.labels):
            raise BadHead(f"There are {len(self.names)} names for {len(self.labels)} labels: {list(self.labels)[:10]}.")
        return ClassNames.on_towers(backbone, self.names or self.labels, self.texts)

    def with_names(self, labels: Sequence[str], names: Sequence[str] = ()) -> Self:
        """The same task for other classes; weights of the old ones are left out."""
        plain = {"labels": tuple(labels), "names": tuple(names), "weights": ()}
        made = self.model_copy(update=plain)
        if not isinstance(made.class_weights, str):
            made = made.model_copy(update={"class_weights": "none"})
        return type(self).model_validate(made.model_dump(by_alias=True))
