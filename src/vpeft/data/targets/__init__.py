"""The kinds of targets, one file each; `vpeft.data.target` finds them by looking through this folder."""

from __future__ import annotations

from vpeft.data.on_pixels import IGNORED as IGNORED
from vpeft.data.target import Given as Given
from vpeft.data.target import Target as Target
from vpeft.data.target import target_of as target_of
from vpeft.data.targets.label import Label as Label
from vpeft.data.targets.labels import Labels as Labels
from vpeft.data.targets.labels import labels_given as labels_given
from vpeft.data.targets.mask import Mask as Mask
from vpeft.data.targets.mask import Masks as Masks
from vpeft.data.targets.values import BINS as BINS
from vpeft.data.targets.values import Values as Values
from vpeft.data.targets.values import values_given as values_given
