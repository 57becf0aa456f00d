"""Data shared by the tests: a small generated dataset, and recorded data where it is at hand."""

import os
from pathlib import Path

import pytest

os.environ["RAY_ADDRESS"] = "local"  # never join a cluster that happens to run on this machine

DATA = Path(os.environ.get("DENSE_DEPTH_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


@pytest.fixture(scope="session")
def generated(tmp_path_factory) -> Path:
    """A generated nuScenes-format dataset: two scenes of three keyframes, six 400x225 cameras, no LiDAR noise."""
    from dense_depth.datasets.synthetic import SynthConfig, generate

    root = tmp_path_factory.mktemp("generated") / "data"
    generate(root, SynthConfig(scenes=2, keyframes=3, image_width=400, image_height=225, lidar_noise_m=0.0))
    return root


@pytest.fixture(scope="session")
def recorded() -> Path:
    """The folder of recorded data; skips where it is not."""
    if not DATA.is_dir():
        pytest.skip(f"no recorded data in {DATA}; set DENSE_DEPTH_DATA")
    return DATA
