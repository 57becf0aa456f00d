"""Labels with poses that are found first: once per scene, for all cameras, and as their recipe says ever after."""

import json
from dataclasses import replace

import pytest
from conftest import changed

import pipelines.runner as runner
from catalog import Catalog
from dense_depth import InputError, pose_store
from dense_depth.datasets import DatasetConfig
from dense_depth.synthetic import Faults, SynthConfig, generate
from pipelines import accumulate, evaluate

SCENE, CAMERAS = "synth-0000", ("CAM_BACK", "CAM_FRONT")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The first scene of the generated dataset, with ego poses that are off by 5 cm and 0.3 degrees."""
    root = tmp_path_factory.mktemp("noisy") / "data"
    faults = Faults(pose_noise_m=0.05, pose_noise_deg=0.3)
    size = {"image_width": 400, "image_height": 225, "lidar_noise_m": 0.0}
    generate(root, SynthConfig(scenes=1, keyframes=3, faults=faults, **size))
    return root


def arguments(root, store, **changes) -> accumulate.Arguments:
    data = DatasetConfig("nuscenes", root, "v1.0-synth", CAMERAS)
    return changed(accumulate.Arguments(data, str(store), (SCENE,)), **changes)


def run(arguments, workers=0) -> runner.Report:
    return runner.run(accumulate.plan(arguments)[0], workers=workers)


def against(root, store, truth: bool, ref="latest"):
    data = DatasetConfig("nuscenes", root, "v1.0-synth", CAMERAS)
    return evaluate.evaluate(evaluate.Arguments(str(store), ref, data, truth=truth, scenes=(SCENE,), workers=0))


@pytest.fixture(scope="module")
def repaired(noisy, tmp_path_factory):
    """A store with labels of repaired poses, and the report of the run."""
    store = tmp_path_factory.mktemp("repaired") / "store"
    return store, run(arguments(noisy, store, poses="repaired"))


def test_repaired_labels_have_hardly_more_errors_than_with_true_poses(generated, noisy, repaired, tmp_path):
    run(arguments(generated, tmp_path / "true"))
    run(arguments(noisy, tmp_path / "noisy"))
    true, wrong, right = (
        against(root, store, truth=True, ref=1)["all"]
        for root, store in ((generated, tmp_path / "true"), (noisy, tmp_path / "noisy"), (noisy, repaired[0]))
    )
    assert wrong["in_front"] > 3 * true["in_front"]
    assert right["in_front"] < 1.5 * true["in_front"]
    assert right["mae_m"] < 1.15 * true["mae_m"] < wrong["mae_m"]


def test_how_poses_came_about_is_in_shard_manifest_and_summary(repaired):
    store, report = repaired
    assert report.version == 1
    version = Catalog(store).version(1)
    for row, shard in zip(version.rows(), report.shards):
        quality = row["quality"]
        assert quality["pose_misfit_m"] < 0.5 * quality["pose_misfit_before_m"]
        assert 0 <= quality["poses_rejected"] <= 1 and quality["poses_open"] == 0
        assert shard["pose_misfit_m"] == quality["pose_misfit_m"]
        attributes = json.loads((store / row["path"] / "zarr.json").read_text())["attributes"]["extra"]
        assert attributes["poses"]["source"] == "repaired"
        assert attributes["poses"]["pose_misfit_m"] == quality["pose_misfit_m"]
    assert version.recipe["poses"] == "repaired"


def test_a_scene_is_registered_once_and_never_again(noisy, repaired, monkeypatch):
    store, _ = repaired
    assert len(list((store / "poses").iterdir())) == 1  # of two cameras

    def fail(scene):
        raise AssertionError("registered again")

    monkeypatch.setattr(pose_store, "repaired", fail)
    again = run(arguments(noisy, store, poses="repaired"))
    assert (again.shards_made, again.shards_done_before, again.failed) == (0, 2, {})
    # Another recipe finds the poses that are there.
    other = run(arguments(noisy, store, poses="repaired", scale=0.5))
    assert (other.shards_made, other.failed) == (2, {})


def test_poses_are_part_of_the_recipe(noisy, tmp_path):
    ids = {}
    for poses in ("dataset", "repaired", "odometry"):
        job, _ = accumulate.plan(arguments(noisy, tmp_path / "store", poses=poses))
        ids[poses] = {shard.shard_id for shard in job.shards}
        assert job.recipe["poses"] == poses and (job.prepare is None) == (poses == "dataset")
    assert not ids["dataset"] & ids["repaired"] and not ids["repaired"] & ids["odometry"]


def test_held_out_checks_take_the_poses_of_the_labels(noisy, repaired, tmp_path):
    run(arguments(noisy, tmp_path / "noisy"))
    wrong, right = (against(noisy, store, truth=False, ref=1)["all"] for store in (tmp_path / "noisy", repaired[0]))
    assert right["in_front"] < 0.5 * wrong["in_front"]


def test_workers_find_the_same_poses(noisy, repaired, tmp_path):
    report = run(arguments(noisy, tmp_path / "store", poses="repaired"), workers=2)
    assert report.failed == {} and report.manifest == repaired[1].manifest
    assert [p.read_bytes() for p in (tmp_path / "store" / "poses").iterdir()] == [
        p.read_bytes() for p in (repaired[0] / "poses").iterdir()
    ]


def test_scenes_whose_poses_fail_are_named_and_nothing_is_committed(noisy, tmp_path, monkeypatch):
    def fail(scene):
        raise RuntimeError("no way")

    monkeypatch.setattr(pose_store, "repaired", fail)
    report = run(arguments(noisy, tmp_path / "store", poses="repaired"))
    assert report.failed == {"synth-0000 poses": "RuntimeError: no way"} and report.version is None


def test_a_file_of_poses_is_for_kitti(noisy, tmp_path):
    with pytest.raises(InputError, match="--poses and --tracks are for kitti-raw"):
        accumulate.plan(replace(arguments(noisy, tmp_path / "s", poses="poses.txt")))
