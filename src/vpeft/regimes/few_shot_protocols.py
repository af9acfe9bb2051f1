"""The two ways in which few-shot numbers of image-text models are made; a table holds numbers of one of them only.

What differs is by what settings and epochs are chosen, and numbers of one are no numbers of the other: a validation set
of a hundred images a class tells more than the one image a class that the method learns from.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from vpeft.errors import VpeftError, nearest


class UnknownFewShotProtocol(VpeftError):
    """No few-shot protocol has this id."""


class FewShotProtocol(BaseModel):
    """Rules for `shots` labelled images of each class.

    Attributes:
        name, version: the id is NAME@VERSION.
        rule: in a sentence.
        validation: "few" allows as many validation images of each class as shots, four at most (as CoOp's data sets
            have them); "none" allows none, so that every setting is the same for all data sets and shots.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = 1
    rule: str
    validation: Literal["few", "none"]

    @property
    def id(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    def validation_images(self, shots: int) -> int:
        """How many validation images of each class may be looked at."""
        return min(shots, MOST) if self.validation == "few" else 0


# Zhou et al. (CoOp, arXiv 2109.01134) give each class min(shots, 4) images for validation.
MOST = 4

FEW_SHOT_PROTOCOLS: dict[str, FewShotProtocol] = {
    one.id: one
    for one in (
        FewShotProtocol(
            name="few-shot-validated",
            rule="Settings and epoch may be chosen on min(shots, 4) validation images of each class; tested once.",
            validation="few",
        ),
        FewShotProtocol(
            name="few-shot-validation-free",
            rule="No validation image: all settings are stated before, the last epoch counts; tested once.",
            validation="none",
        ),
    )
}


def few_shot_protocol(name: str) -> FewShotProtocol:
    """The protocol with this id, such as `few-shot-validation-free@1`.

    Raises:
        UnknownFewShotProtocol: with the nearest id.
    """
    if name not in FEW_SHOT_PROTOCOLS:
        raise UnknownFewShotProtocol(f"There is no few-shot protocol {name!r}. {nearest(name, FEW_SHOT_PROTOCOLS)}")
    return FEW_SHOT_PROTOCOLS[name]
