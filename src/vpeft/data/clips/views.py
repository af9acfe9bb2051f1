"""Several views of each clip in a test, one after the other, so that memory holds one at a time."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset
from torchvision.transforms import v2

from vpeft.batch import Sample
from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import Preprocessing


class ClipViews(Dataset[Sample]):
    """Item k is view k % V of clip k // V, with the clip's name as `id`; `views` is V.

    Views go through time first: part 0 with all its crops, then part 1. Evaluation averages those of a clip.
    """

    def __init__(self, clips: ImageSet, preprocessing: Preprocessing) -> None:
        assert preprocessing.clip is not None  # the preprocessing of clips
        self.clips, self.labels = clips, clips.labels
        self.views = preprocessing.clip.count
        self._transforms = transforms_of_views(preprocessing)
        self._seen: tuple[tuple[int, int], Any] | None = None  # the frames that were decoded last

    def __len__(self) -> int:
        return len(self.clips) * self.views

    @property
    def targets(self) -> list[Any]:
        """The target of each view."""
        return [target for target in self.clips.targets for _ in range(self.views)]

    def __getitem__(self, index: int) -> Sample:
        number, view = divmod(range(len(self))[index], self.views)
        first, *rest = self._transforms[view].transforms
        # The crops of one part show the same frames.
        key = number, first.part
        if self._seen is None or self._seen[0] != key:
            self._seen = key, first(self.clips.image(number))
        made = self._seen[1]
        for step in rest:
            made = step(made)
        return Sample(made, self.clips.targets[number], self.clips.items[number].name)


def transforms_of_views(preprocessing: Preprocessing) -> list[v2.Compose]:
    """The transform of each view, from a `Clip` to the input of a model; the first step decodes its frames."""
    clip = preprocessing.clip
    assert clip is not None  # the preprocessing of clips
    return [preprocessing.view(part, crop) for part in range(clip.parts) for crop in range(clip.crops)]


def in_views(samples: Any, preprocessing: Preprocessing) -> Any:
    """The views of each clip of a set that is to be tested, where more than one is asked for; else the set itself."""
    clip = preprocessing.clip
    if clip is None or clip.count == 1 or not isinstance(samples, ImageSet):
        return samples
    return ClipViews(samples, preprocessing)
