"""What an acceleration is: a name, what it promises, and how it is put on a tuned model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from vpeft.acceleration.patches import Patches
from vpeft.errors import VpeftError
from vpeft.injection.tuned_model import TunedModel


class NotApplicable(VpeftError):
    """An acceleration has nothing to do here, or would not be exact; the message is the reason."""


class Acceleration(ABC):
    """One way of doing less work.

    Class attributes:
        name: as it is typed; `names.NAMES` says what it does.
        for_memory: whether it saves memory and nothing else.
    """

    name: ClassVar[str]
    for_memory: ClassVar[bool] = False

    @abstractmethod
    def install(self, tuned: TunedModel, changes: Patches) -> str:
        """Change the model; says what was done, as the end of a sentence.

        Raises:
            NotApplicable: with the reason; what was changed until then is undone by the caller.
        """

    def warm(self, step: Callable[[int], object]) -> str:
        """What must run before the proof: `step(count)` is one with so many images. Goes on where `install` ended.

        Raises:
            NotApplicable: as above.
        """
        return ""
