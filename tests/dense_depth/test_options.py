from dataclasses import dataclass

import pytest

from dense_depth import InputError
from dense_depth.options import check_options

NAN, INF = float("nan"), float("inf")


@dataclass
class Options:
    share: float | None = 0.5
    sizes_m: tuple[float, float] = (1.0, 2.0)


BOUNDS = {
    "least": (0.5, 0.4, "at least 0.5"),
    "above": (0.51, 0.5, "above 0.5"),
    "most": (0.5, 0.51, "at most 0.5"),
    "below": (0.49, 0.5, "below 0.5"),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_bound_is_named_with_the_option(kind):
    good, bad, words = BOUNDS[kind]
    bounds = {kind: {"share": 0.5}}
    check_options(Options(share=good), **bounds)
    check_options(Options(share=None), **bounds)
    for value in (bad, NAN):
        with pytest.raises(InputError, match=f"^--share {value}: must be {words}$"):
            check_options(Options(share=value), **bounds)
    for value in (INF, -INF):
        with pytest.raises(InputError, match=f"--share {value}: must be {words}(, and finite)?$"):
            check_options(Options(share=value), **bounds)


@pytest.mark.parametrize("bad", [NAN, INF, -1.0])
def test_every_number_of_several_is_looked_at(bad):
    check_options(Options(), {"sizes_m": 0})
    with pytest.raises(InputError, match="--sizes-m"):
        check_options(Options(sizes_m=(1.0, bad)), {"sizes_m": 0})
