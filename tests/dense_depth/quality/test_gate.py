"""The gate refuses what breaks a limit, on either side, and says so in one line."""

import pytest

from catalog.figures import BY_NAME
from dense_depth import InputError
from dense_depth.quality.gate import LIMITS, Gate

FIGURES = {"behind": 0.002, "in_front": 0.02, "coverage": 0.5}


def test_limits_that_are_kept_say_nothing():
    assert Gate().refusals({}) == []
    assert Gate(max_see_through=0.002, max_ghosts=0.02, min_coverage=0.5).refusals(FIGURES) == []


def test_each_limit_that_is_broken_is_a_line():
    assert Gate(max_see_through=0.001, max_ghosts=0.03, min_coverage=0.6).refusals(FIGURES) == [
        "see-through 0.200 %, --max-see-through is 0.1 %",
        "coverage 50.000 %, --min-coverage is 60 %",
    ]
    assert Gate(max_ghosts=0).refusals(FIGURES) == ["ghosts 2.000 %, --max-ghosts is 0 %"]


def test_a_figure_that_is_not_known_keeps_no_limit():
    assert Gate(max_ghosts=1).refusals({"in_front": None}) == ["ghosts not known, --max-ghosts is 100 %"]
    assert Gate(min_coverage=0).refusals({}) == ["coverage not known, --min-coverage is 0 %"]


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_a_limit_is_a_share(limit):
    with pytest.raises(InputError, match="--max-ghosts"):
        Gate(max_ghosts=limit)


def test_options_say_the_side_that_the_figure_declares():
    sides = {name: {"max": "low", "min": "high"}[name.split("_")[0]] for name in LIMITS}
    assert sides == {name: BY_NAME[figure].better for name, (figure, _) in LIMITS.items()}
