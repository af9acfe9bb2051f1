"""The form in which a library keeps a model: how its classifier is put in, how it is written to a folder and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import VpeftError


class CannotExport(VpeftError):
    """The other side has no form for what this adapter does; the message says what and what to do instead."""


@dataclass(frozen=True)
class Classified:
    """A library's model with a classifier of its own.

    Attributes:
        model: the model; its output is the logits (B, K).
        classifiers: the paths of the linear layers that are the classifier, mostly one.
        prefix: what the backbone's module names gained in front, such as "vit."; empty if none.
    """

    model: nn.Module
    classifiers: tuple[str, ...]
    prefix: str = ""


class LibraryFormat(ABC):
    """One library: `timm`, `transformers`, `torchvision`, `open_clip`."""

    library: str

    @abstractmethod
    def with_classifier(self, model: nn.Module, outputs: int) -> Classified | None:
        """Return the model with a linear classifier for `outputs` classes; None where the library has no such model.

        `model` may be changed, and its tensors are shared.
        """

    @abstractmethod
    def output(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return what the library's model computes for images: logits, or its features where it has no classifier."""

    @abstractmethod
    def write(self, model: nn.Module, folder: Path, labels: Sequence[str], preprocessing: dict[str, Any]) -> None:
        """Write the model as the library does into an existing folder. Nothing is pickled."""

    @abstractmethod
    def read(self, folder: Path, like: nn.Module) -> nn.Module:
        """Return the model of a folder that `write` wrote, made by the library alone.

        Args:
            folder: where it lies.
            like: a model of the same architecture with other weights, for libraries whose files do not say how to make
                one; it is filled.
        """

    @abstractmethod
    def usage(self, model: nn.Module, folder: Path) -> str:
        """Return the lines of Python that load the folder without vpeft."""

    @abstractmethod
    def creation(self, model: nn.Module, outputs: int | None) -> str:
        """Return the Python expression that makes the model with its pre-trained weights and `outputs` classes."""


def path_of(model: nn.Module, part: nn.Module) -> str | None:
    """The dotted name of a module in a model; None if it is not in it."""
    return next((path for path, module in model.named_modules() if module is part), None)
