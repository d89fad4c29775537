"""What the layouts share: which slot of an optimizer is missing."""

import pytest

from optax_kadam.keras_files._contents import missing_slot


@pytest.mark.parametrize(
    ("slots", "missing"),
    [
        ({}, None),
        ({"mu": "ab", "nu": "ab"}, None),
        ({"mu": "ab"}, ("nu", "a")),
        ({"nu_max": "a"}, ("mu", "a")),
        ({"mu": "ab", "nu": "ab", "average": "b"}, ("average", "a")),
    ],
)
def test_each_variable_needs_both_moments_and_each_slot_that_another_has(slots, missing):
    assert missing_slot(slots) == missing
