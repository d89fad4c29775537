"""What differs between the generations: each has its rules, and knows its own arguments alone."""

import pytest

from optax_kadam import _generations


def test_each_generation_differs_from_each_other():
    assert len({_generations.rules_of(name) for name in _generations.GENERATIONS}) == 3


def test_an_unknown_generation_is_refused():
    with pytest.raises(ValueError, match="must be one of .*. Received: generation=.keras2."):
        _generations.rules_of("keras2")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("generation", _generations.GENERATIONS)
def test_an_argument_is_known_to_some_and_refused_by_the_others(generation):
    for name, knowing in _generations._KNOWN_TO.items():
        if generation in knowing:
            _generations.check_known(generation, **{name: 1.0})
        else:
            with pytest.raises(ValueError, match=f"`{name}` must be left out .* It belongs to generation="):
                _generations.check_known(generation, **{name: 1.0})
