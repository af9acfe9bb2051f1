"""`Acceleration`, the interface of a rewrite of a tuned model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from vpeft.acceleration.patches import Patches
from vpeft.errors import VpeftError
from vpeft.injection.tuned_model import TunedModel


class NotApplicable(VpeftError):
    """An acceleration has no effect here, or would not be exact; the message is the reason."""


class Acceleration(ABC):
    """One rewrite that saves time or memory.

    Class attributes:
        name: the name in `--acceleration`; `names.NAMES` says what it does.
        for_memory: whether it saves memory only.
    """

    name: ClassVar[str]
    for_memory: ClassVar[bool] = False

    @abstractmethod
    def install(self, tuned: TunedModel, patches: Patches) -> str:
        """Change the model through `patches`; return what was done, as the end of a sentence.

        Raises:
            NotApplicable: with the reason; the caller then undoes the patches.
        """

    def warm(self, step: Callable[[int], object]) -> str:
        """Run steps before the test, such as compilation; return text to append to that of `install`.

        Args:
            step: step(n) runs a forward and backward pass with n images.

        Raises:
            NotApplicable: with the reason.
        """
        return ""
