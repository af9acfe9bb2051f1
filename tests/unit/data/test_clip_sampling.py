"""Which frames a model sees, by the rules that have names."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.clips.sampling import dense, drawn, frame_numbers, segments
from vpeft.data.problems import DataError


def test_dense_takes_a_stride_from_a_start() -> None:
    assert dense(4, 3, 30, lambda below: 5) == [5, 8, 11, 14]
    assert dense(4, 3, 30, None) == [10, 13, 16, 19]  # the middle: 10 before, 10 after
    starts: set[int] = set()
    torch.manual_seed(0)
    for _ in range(300):
        found = dense(4, 3, 14, drawn)
        assert found == [found[0] + 3 * number for number in range(4)]
        starts.add(found[0])
    assert starts == {0, 1, 2, 3, 4}  # every start from which the last frame is there


def test_views_in_time_cover_the_whole_clip() -> None:
    found = [dense(2, 1, 11, None, part, 4) for part in range(4)]
    assert found == [[0, 1], [3, 4], [6, 7], [9, 10]]
    assert dense(2, 1, 11, None, 0, 1) == [4, 5]


@pytest.mark.parametrize(
    ("short", "found"),
    [("spread", [0, 1, 1, 2, 3, 4, 4, 5]), ("hold", [0, 2, 4, 5, 5, 5, 5, 5]), ("loop", [0, 2, 4, 0, 2, 4, 0, 2])],
)
def test_short_clips_repeat_by_a_stated_rule(short: str, found: list[int]) -> None:
    made = frame_numbers(ClipConfig.model_validate({"frames": 8, "stride": 2, "short": short}), 8, 6)
    assert made == found
    exact = torch.tensor([number * 5 / 7 for number in range(8)], dtype=torch.float64)
    if short == "spread":
        assert (torch.tensor(made) - exact).abs().max() <= 0.5


def test_a_clip_of_as_many_frames_gives_each_once() -> None:
    assert frame_numbers(ClipConfig(stride=4), 16, 16) == list(range(16))
    assert dense(16, 4, 16, drawn) == list(range(16))


def test_segments_take_one_frame_of_each_part() -> None:
    torch.manual_seed(0)
    seen: list[set[int]] = [set(), set(), set()]
    for _ in range(200):
        for of_part, number in zip(seen, segments(3, 10, drawn), strict=True):
            of_part.add(number)
    assert seen == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8, 9}]
    assert segments(3, 9, None) == [1, 4, 7]
    assert segments(4, 2, drawn) == [0, 0, 1, 1]
    clip = ClipConfig(sampling="segments", views="2x1")
    assert [frame_numbers(clip, 2, 8, None, part) for part in (0, 1)] == [[1, 5], [3, 7]]


def test_all_frames_and_another_number_than_the_model_takes() -> None:
    assert frame_numbers(ClipConfig(sampling="all"), 5, 5) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="5 frames"):
        frame_numbers(ClipConfig(sampling="all", frames=8), 8, 5)


def test_every_number_is_a_frame_of_the_clip() -> None:
    torch.manual_seed(0)
    for sampling in ("dense", "segments"):
        for short in ("spread", "hold", "loop"):
            clip = ClipConfig.model_validate({"sampling": sampling, "short": short, "stride": 3, "views": "4x3"})
            for count in range(1, 40):
                for frames in (1, 2, 7, 16):
                    made = [frame_numbers(clip, frames, count, drawn)]
                    made += [frame_numbers(clip, frames, count, None, part) for part in range(4)]
                    assert all(len(one) == frames and min(one) >= 0 and max(one) < count for one in made)


def test_views_are_two_numbers() -> None:
    assert (ClipConfig(views="10x3").parts, ClipConfig(views="10x3").crops, ClipConfig(views="10x3").count) == (
        10,
        3,
        30,
    )
    for wrong in ("4", "0x3", "4x2", "40x3", "4 x 3"):
        with pytest.raises(ValidationError):
            ClipConfig(views=wrong)


def test_what_is_set_goes_over_what_is_there() -> None:
    there = ClipConfig(frames=8, stride=2, views="4x3")
    assert ClipConfig(views="1x1").over(there) == ClipConfig(frames=8, stride=2, views="1x1")
    assert ClipConfig().over(there) == there
