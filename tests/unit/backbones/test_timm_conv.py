"""What is special of convolutional nets and mixers: activations in place, weights that are standardised, BatchNorm."""

from __future__ import annotations

import pytest
from torch import nn

from tests.families.timm_conv import VARIANTS
from tests.unit.backbones.test_families import (  # the same tests, on further settings of these classes
    test_each_place_is_executed_once_with_its_width_and_layout,
    test_every_parameter_has_a_place,
    test_features_are_those_of_the_library,
    test_re_expressions_are_bit_equal_without_edits,
)

__all__ = [
    "test_each_place_is_executed_once_with_its_width_and_layout",
    "test_every_parameter_has_a_place",
    "test_features_are_those_of_the_library",
    "test_re_expressions_are_bit_equal_without_edits",
]


@pytest.fixture(params=VARIANTS, ids=str)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return VARIANTS[request.param]()
