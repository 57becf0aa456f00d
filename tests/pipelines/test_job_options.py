"""What every job does with its options, before any work."""

import dataclasses
import math
import sys
import typing

import pytest

from catalog import Catalog
from dense_depth import InputError
from dense_depth.accumulation import AccumulationConfig
from dense_depth.datasets import DatasetConfig
from dense_depth.projection import VisibilityConfig
from dense_depth.quality.gate import LIMITS, Gate
from pipelines import accumulate, complete, evaluate, runner

DATA = DatasetConfig("nuscenes", "data")
MAKE = {
    "accumulation": AccumulationConfig,
    "visibility": VisibilityConfig,
    "accumulate": lambda **changes: accumulate.Arguments(DATA, "store", **changes),
    "complete": lambda **changes: complete.Arguments("store", "latest", DATA, **changes),
    "evaluate": lambda **changes: evaluate.Arguments("store", "latest", DATA, truth=True, **changes),
    "gate": Gate,
}
TOO_MUCH = {
    "max_range_m": 201,
    "max_bad_points": 1.01,
    "min_quadrants": 5,
    "width_deg": 120,
    "height_deg": 90,
    "cell_deg": 90,
    "scale": 1.01,
    "min_confidence": 1.01,
    **dict.fromkeys(LIMITS, 1.01),
}
UNBOUNDED = {  # but finite
    *("past_s", "future_s", "ego_crop_m", "min_range_m", "box_margin_m", "moving_above_m", "extrapolate_s", "lost_s"),
    *("margin_m", "margin_ratio", "min_sweeps", "workers", "crop_height", "worst"),
}


def numbers() -> list[tuple[str, str, bool]]:
    """Every option that is a number or several: its config, its name, whether it is several."""
    found = []
    for config, make in MAKE.items():
        hints = typing.get_type_hints(type(make()))
        for field in dataclasses.fields(make()):
            kinds = {hints[field.name], *typing.get_args(hints[field.name])}
            if kinds & {int, float, tuple[float, float]}:
                found.append((config, field.name, tuple[float, float] in kinds))
    return found


def test_every_number_has_its_row():
    names = {name for _, name, _ in numbers()}
    assert len(names) > 15 and names == TOO_MUCH.keys() | UNBOUNDED


@pytest.mark.parametrize(("config", "name", "several"), numbers())
def test_no_number_is_nan_negative_infinite_or_too_large(config, name, several):
    for value in (math.nan, -1, math.inf, *([TOO_MUCH[name]] if name in TOO_MUCH else [])):
        with pytest.raises(InputError, match=rf"^--{name.replace('_', '-')} {value}: must be .*\d") as error:
            MAKE[config](**{name: (1.0, value) if several else value})
        assert "\n" not in str(error.value)


def test_the_range_must_not_be_empty():
    with pytest.raises(InputError, match=r"--max-range-m 5\.0: must be above 5"):
        AccumulationConfig(min_range_m=5.0, max_range_m=5.0)


@pytest.mark.parametrize("command", [accumulate, complete, evaluate])
def test_a_summary_that_cannot_be_written_is_refused_before_the_work(command, monkeypatch, capsys, tmp_path):
    options = ["--dataset", "nuscenes", "--dataroot", "nowhere", "--store", tmp_path / "s", "--workers", 0]
    options += [] if command is accumulate else ["--ref", 1]
    monkeypatch.setattr(sys, "argv", [*map(str, ["job", *options, "--summary", tmp_path])])
    assert command.main() == 2
    assert f"--summary {tmp_path}: cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("store", ["memory://dry-run", "{}/store"])
def test_a_dry_run_knows_what_is_done_in_a_bucket_too(generated, tmp_path, store):
    data = DatasetConfig("nuscenes", generated, "v1.0-synth", ("CAM_FRONT", "CAM_BACK"))
    arguments = accumulate.Arguments(data, store.format(tmp_path), ("synth-0000",), scale=0.25)

    def dry_run() -> tuple[int, int]:
        report = runner.run(accumulate.plan(arguments)[0], workers=0, dry_run=True)
        return report.shards_done_before, report.shards_planned

    assert dry_run() == (0, 2)
    with pytest.raises(InputError, match="not a label store"):
        Catalog(arguments.store)  # nothing was made
    runner.run(accumulate.plan(arguments)[0], workers=0)
    assert dry_run() == (2, 2)


def test_a_dry_run_into_anything_but_a_store_says_so(generated, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    data = DatasetConfig("nuscenes", generated, "v1.0-synth", ("CAM_FRONT",))
    with pytest.raises(InputError, match="not a label store"):
        runner.run(accumulate.plan(accumulate.Arguments(data, str(tmp_path)))[0], workers=0, dry_run=True)
