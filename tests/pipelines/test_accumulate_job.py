"""The whole job: plain, under Ray, killed and resumed, and on bad input."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import changed, let_workers_import, write_poses

import pipelines.runner as runner
from catalog import Catalog
from dense_depth import InputError
from dense_depth.accumulation import AccumulationConfig
from dense_depth.datasets import DatasetConfig
from dense_depth.datasets.truth import read_truth
from dense_depth.projection import VisibilityConfig
from pipelines.accumulate import REFUSED_HIDDEN, Arguments, Loaded, make_labels, plan

SCRIPT = Path(__file__).parents[2] / "pipelines" / "accumulate.py"


def accumulate(*options, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)


def arguments(root: Path, store: Path, **changes) -> Arguments:
    return changed(Arguments(DatasetConfig("nuscenes", root, "v1.0-synth"), str(store), workers=0), **changes)


def run(arguments: Arguments, make=make_labels, workers=0) -> runner.Report:
    job, _ = plan(arguments)
    return runner.run(replace(job, make=make), workers=workers)


@pytest.fixture(scope="module")
def reference(generated, tmp_path_factory) -> runner.Report:
    """A fault-free run in this process."""
    return run(arguments(generated, tmp_path_factory.mktemp("reference") / "store"))


def test_labels_can_be_read_and_are_true(generated, reference):
    version = Catalog(reference.store).version("latest")
    rows = version.rows()
    assert len(rows) == 12 and version.number == reference.version == 1
    assert {row["kind"] for row in rows} == {"accumulated"}
    for row in rows[:3]:
        truth = read_truth(generated, row["scene_token"], row["camera"])
        label = version.read(row["sample_tokens"][1], row["camera"])
        assert label.depth_m.dtype == np.float32 and label.depth_m.shape == (225, 400)
        true = np.asarray(truth.depth_m[truth.sample_tokens.index(row["sample_tokens"][1])])
        both = (label.depth_m > 0) & (true > 0)
        assert both.mean() > 0.05
        assert np.median(np.abs(label.depth_m - true)[both]) < 0.05
        # The middle one of three labels: sweeps 0.1 s apart, half a second each way.
        assert set(label.age[label.source > 1]) == set(range(6)) and not label.age[label.depth_m == 0].any()
        assert label.age[label.source == 1].max() <= 1
        assert row["quality"]["n_points"] > 1000
        fractions = [row["quality"][f"{name}_fraction"] for name in ("key", "static", "moving")]
        assert sum(fractions) == pytest.approx(1)


def test_what_lies_behind_dropped_objects_is_left_out_and_counted(generated, reference, tmp_path):
    config = AccumulationConfig(dynamics="drop")
    options = arguments(generated, tmp_path / "s", cameras=("CAM_FRONT",), scenes=("synth-0000",), accumulation=config)
    (dropped,) = Catalog(run(options).store).version("latest").rows()
    rows = Catalog(reference.store).version("latest").rows()
    (whole,) = (row for row in rows if row["shard_id"].split(".")[:2] == dropped["shard_id"].split(".")[:2])
    assert whole["quality"]["behind_dropped"] == whole["quality"]["dropped_moving"] == 0
    assert dropped["quality"]["behind_dropped"] > 1000 and dropped["quality"]["dropped_moving"] > 100
    assert dropped["valid_fraction"] < whole["valid_fraction"]


def test_two_workers_write_the_same_bytes_and_a_second_run_nothing(generated, reference, tmp_path):
    options = ["--dataset", "nuscenes", "--dataroot", generated, "--version", "v1.0-synth", "--store", tmp_path / "s"]
    done = accumulate(*options, "--workers", 2, "--tag", "main", "--summary", tmp_path / "summary.json")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["manifest"] == reference.manifest
    assert summary["shards_made"] == 12 and summary["labels_made"] == 36
    assert f"version 1, tag main, manifest {reference.manifest}" in done.stdout
    assert "12 to make: 36 labels, about" in done.stdout

    again = accumulate(*options, "--workers", 2, "--tag", "again", "--summary", tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert again.returncode == 0 and summary["shards_made"] == 0 and summary["version"] == 1
    catalog = Catalog(tmp_path / "s")
    assert len(catalog.versions()) == 1 and catalog.tags() == {"main": 1, "again": 1}
    assert catalog.verify("again") == []


def test_a_lost_shard_is_made_again_by_the_same_command(generated, reference, tmp_path):
    first = run(arguments(generated, tmp_path / "s"))
    lost = sorted((tmp_path / "s" / "shards" / "accumulated").iterdir())
    shutil.rmtree(lost[0])
    (lost[1] / "depth_step/c/0/0").write_bytes(b"")
    assert len(Catalog(tmp_path / "s").verify("latest")) >= 2
    second = run(arguments(generated, tmp_path / "s"))
    assert second.shards_made == 2 and second.version == first.version == 1
    assert Catalog(tmp_path / "s").verify("latest") == []


def test_a_full_disk_commits_nothing_and_the_job_continues_after_it(generated, reference, tmp_path):
    """Files may not grow beyond 20 kB: shards fail, are retried, and are listed."""
    options = [
        *("--dataset", "nuscenes", "--dataroot", generated, "--version", "v1.0-synth"),
        *("--store", tmp_path / "s", "--workers", 0),
    ]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = accumulate(*options, preexec_fn=limit)
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and Catalog(tmp_path / "s").versions() == []
    assert accumulate(*options).returncode == 0
    assert Catalog(tmp_path / "s").version(1).manifest == reference.manifest


def test_dry_run_writes_nothing(generated, tmp_path):
    done = accumulate(
        *("--dataset", "nuscenes", "--dataroot", generated, "--version", "v1.0-synth"),
        *("--store", tmp_path / "s", "--dry-run"),
    )
    assert done.returncode == 0 and "36 labels" in done.stdout
    assert not (tmp_path / "s").exists()


def test_a_new_recipe_makes_a_new_version_and_keeps_the_old(generated, tmp_path):
    first = run(arguments(generated, tmp_path / "s", scenes=("synth-0000",), tag="first"))
    half = run(arguments(generated, tmp_path / "s", scenes=("synth-0000",), scale=0.5, tag="half"))
    lidar = run(arguments(generated, tmp_path / "s", scenes=("synth-0000",), kind="lidar"))
    assert (first.version, half.version, lidar.version) == (1, 2, 3)
    catalog = Catalog(tmp_path / "s")
    token = catalog.version("first").rows()[0]["sample_tokens"][0]
    assert catalog.version("first").read(token, "CAM_FRONT").depth_m.shape == (225, 400)
    small = catalog.version("half").read(token, "CAM_FRONT")
    assert small.depth_m.shape == (112, 200)
    single = catalog.version(3).read(token, "CAM_FRONT", kind="lidar")
    assert set(np.unique(single.source)) == {0, 1}
    with pytest.raises(InputError, match="kind"):
        catalog.version(3).read(token, "CAM_FRONT")


@dataclass
class Fault:
    """Makes shards, and does something bad before the one of CAM_FRONT, as often as the marker allows."""

    marker: Path
    times: int
    act: str

    def __call__(self, loaded, shards):
        for made in make_labels(loaded, shards):
            tries = len(list(self.marker.parent.glob(f"{self.marker.name}*")))
            if made.content.camera == "CAM_FRONT" and tries < self.times:
                (self.marker.parent / f"{self.marker.name}{tries}").touch()
                if self.act == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("injected")
            yield made


def test_a_shard_that_fails_once_is_retried(generated, reference, tmp_path):
    report = run(arguments(generated, tmp_path / "s"), Fault(tmp_path / "marker", 1, "raise"))
    assert report.manifest == reference.manifest and not report.failed


def test_a_shard_that_always_fails_is_listed_and_nothing_is_committed(generated, reference, tmp_path):
    report = run(arguments(generated, tmp_path / "s"), Fault(tmp_path / "marker", 1000, "raise"))
    # The other cameras of the scenes are done and kept.
    assert set(report.failed) == {"synth-0000 CAM_FRONT", "synth-0001 CAM_FRONT"}
    assert "RuntimeError: injected" in report.failed["synth-0000 CAM_FRONT"]
    assert report.version is None and Catalog(tmp_path / "s").versions() == []
    report = run(arguments(generated, tmp_path / "s"))
    assert report.shards_done_before == 10 and report.shards_made == 2
    assert report.manifest == reference.manifest


def test_a_killed_worker_is_replaced_and_the_bytes_are_the_same(generated, reference, tmp_path, monkeypatch):
    let_workers_import(monkeypatch, __file__)  # Fault
    report = run(arguments(generated, tmp_path / "s"), Fault(tmp_path / "marker", 2, "kill"), workers=2)
    assert len(list(tmp_path.glob("marker*"))) == 2, report
    assert report.manifest == reference.manifest and not report.failed


def test_a_killed_driver_is_resumed_where_it_stopped(generated, reference, tmp_path):
    """The driver dies without a word as soon as some shards are done; the same command does the others."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path\n"
        "from test_accumulate_job import Fault, arguments, run\n"
        "run(arguments(Path(sys.argv[1]), Path(sys.argv[2]) / 's'), Fault(Path(sys.argv[2]) / 'marker', 1, 'kill'))"
    )
    command = [sys.executable, "-c", code, str(generated), str(tmp_path), str(Path(__file__).parent)]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    assert Catalog(tmp_path / "s").versions() == []
    report = run(arguments(generated, tmp_path / "s"))
    assert report.shards_done_before == 3 and report.shards_made == 9
    assert report.manifest == reference.manifest
    assert not list((tmp_path / "s").glob("receipts/*/*"))


@pytest.mark.parametrize("after_s", [0.0, 0.5])
def test_a_killed_ray_job_is_resumed(generated, reference, tmp_path, after_s):
    """SIGKILL of the driver of a Ray job some time after the first receipt."""
    options = ["--dataset", "nuscenes", "--dataroot", generated, "--version", "v1.0-synth", "--store", tmp_path / "s"]
    command = [sys.executable, str(SCRIPT), *map(str, options), "--workers", "1"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "s").glob("receipts/*/*.json")) and driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(after_s)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before = len(list((tmp_path / "s").glob("receipts/*/*.json")))
    committed = len(Catalog(tmp_path / "s").versions())
    report = run(arguments(generated, tmp_path / "s"))
    assert report.manifest == reference.manifest
    assert committed or report.shards_done_before >= before >= 1
    assert len(Catalog(tmp_path / "s").versions()) == 1


def damage_sweep(change):
    def damage(root: Path) -> str:
        path = sorted((root / "sweeps" / "LIDAR_TOP").iterdir())[3]
        change(path)
        return path.name

    return damage


def put_nan(path: Path) -> None:
    points = np.fromfile(path, np.float32)
    points[100] = np.nan
    points.tofile(path)


def edit_table(table: str, change):
    def damage(root: Path) -> str:
        path = root / "v1.0-synth" / f"{table}.json"
        rows = json.loads(path.read_text())
        says = change(rows)
        path.write_text(json.dumps(rows))
        return says

    return damage


def drop_row(rows) -> str:
    return rows.pop(4)["token"]


def drop_sweep(rows) -> str:
    return rows.pop(next(i for i, row in enumerate(rows) if not row["is_key_frame"]))["next"]


def turn_K(rows) -> str:
    row = next(row for row in rows if row["camera_intrinsic"])
    row["camera_intrinsic"] = np.transpose(row["camera_intrinsic"]).tolist()
    return row["token"]


def stretch_quaternion(rows) -> str:
    row = rows[0]
    row["rotation"] = [2 * q for q in row["rotation"]]
    return row["token"]


DAMAGES = {
    "truncated sweep": damage_sweep(lambda path: path.write_bytes(path.read_bytes()[:-8])),
    "empty sweep": damage_sweep(lambda path: path.write_bytes(b"")),
    "missing sweep": damage_sweep(lambda path: path.unlink()),
    "nan points": damage_sweep(put_nan),
    "missing ego pose": edit_table("ego_pose", drop_row),
    "missing sample data": edit_table("sample_data", drop_sweep),
    "missing calibration": edit_table("calibrated_sensor", drop_row),
    "transposed K": edit_table("calibrated_sensor", turn_K),
    "broken quaternion": edit_table("calibrated_sensor", stretch_quaternion),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_bad_input_is_one_line_and_no_version(generated, tmp_path, name):
    root = tmp_path / "data"
    shutil.copytree(generated, root, ignore=shutil.ignore_patterns("truth", "*.jpg"))
    says = DAMAGES[name](root)
    done = accumulate(
        *("--dataset", "nuscenes", "--dataroot", root, "--version", "v1.0-synth"),
        *("--store", tmp_path / "s", "--workers", 0),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and says in done.stderr
    assert not list((tmp_path / "s").glob("versions/*"))


def test_bad_sweeps_are_dropped_on_request_and_recorded(generated, reference, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(generated, root, ignore=shutil.ignore_patterns("truth", "*.jpg"))
    names = [DAMAGES[name](root) for name in ("nan points", "missing sweep")]
    assert names[0] == names[1]  # the same sweep: damaged, then gone
    done = accumulate(
        *("--dataset", "nuscenes", "--dataroot", root, "--version", "v1.0-synth"),
        *("--store", tmp_path / "s", "--workers", 0, "--bad-sweeps", "drop"),
    )
    assert done.returncode == 0, done.stderr
    assert names[0] in done.stdout and "dropped" in done.stdout
    rows = Catalog(tmp_path / "s").version(1).rows()
    assert {row["quality"]["dropped_sweeps"] for row in rows if row["scene_token"] == rows[0]["scene_token"]} <= {0, 1}
    assert sum(row["quality"]["dropped_sweeps"] for row in rows) == 6


def test_nan_points_stop_a_ray_job_too(generated, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(generated, root, ignore=shutil.ignore_patterns("truth", "*.jpg"))
    says = DAMAGES["nan points"](root)
    with pytest.raises(InputError, match=says):
        run(arguments(root, tmp_path / "s"), workers=2)
    assert Catalog(tmp_path / "s").versions() == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--scenes": "scene-9999"}, "scene-9999"),
        ({"--cameras": "CAM_ROOF"}, "CAM_ROOF"),
        ({"--version": "v9"}, "v9"),
        ({"--dataroot": "nowhere"}, "nowhere"),
        ({"--tag": "../up"}, "../up"),
        ({"--tag": "7"}, "'7'"),
        ({"--scale": 2}, "--scale"),
        ({"--past-s": -1}, "--past-s"),
        ({"--max-range-m": 500}, "--max-range-m"),
        ({"--kind": "lidar", "--future-s": 3}, "--future-s"),
        ({"--min-sweeps": 1000}, "--min-sweeps"),
        ({"--workers": -1}, "--workers"),
        ({"--dataset": "waymo"}, "waymo"),
        ({"--poses": "x.txt"}, "--poses"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(generated, tmp_path, changes, says):
    options = {
        **{"--dataset": "nuscenes", "--dataroot": generated, "--version": "v1.0-synth"},
        **{"--store": tmp_path / "s", "--workers": 0, **changes},
    }
    done = accumulate(*(part for option in options.items() for part in option))
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert not list((tmp_path / "s").glob("versions/*"))


def test_a_wrong_ray_address_is_one_line_and_an_empty_one_is_none(generated, tmp_path):
    options = [
        *("--dataset", "nuscenes", "--dataroot", generated, "--version", "v1.0-synth"),
        *("--store", tmp_path / "s", "--workers", 1, "--scenes", "synth-0000", "--cameras", "CAM_FRONT"),
    ]
    done = accumulate(*options, env={**os.environ, "RAY_ADDRESS": "http://127.0.0.1:8265"})
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "RAY_ADDRESS=http://127.0.0.1:8265" in done.stderr
    assert accumulate(*options, env={**os.environ, "RAY_ADDRESS": ""}).returncode == 0


def test_a_folder_that_is_not_a_store_is_left_alone(generated, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("years of work")
    done = accumulate(
        *("--dataset", "nuscenes", "--dataroot", generated, "--version", "v1.0-synth"), *("--store", tmp_path / "s")
    )
    assert done.returncode == 2 and str(tmp_path / "s") in done.stderr
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["thesis.tex"]


def test_real_drive_makes_forty_labels(recorded, tmp_path):
    done = accumulate(
        *("--dataset", "kitti-raw", "--dataroot", recorded / "kitti_raw", "--scenes", "2011_09_26_drive_0005_sync"),
        *("--store", tmp_path / "s", "--tag", "real", "--workers", 0),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    version = Catalog(tmp_path / "s").version("real")
    (row,) = version.rows()
    assert (row["camera"], row["n_frames"], row["height"], row["width"]) == ("image_02", 40, 375, 1242)
    label = version.read(row["sample_tokens"][20], "image_02")
    assert (label.depth_m > 0).mean() > 0.25
    assert 2 < label.depth_m[label.depth_m > 0].min() < label.depth_m.max() < 82
    assert row["quality"]["moving_fraction"] > 0.02


def test_poses_that_hide_too_much_are_noted_or_refused(recorded, tmp_path, capsys):
    """Without GPS no reader can compare the poses of a drive; the labels tell."""
    drive = "2011_09_26_drive_0005_sync"
    without_gps = shutil.ignore_patterns("oxts")
    shutil.copytree(recorded / "kitti_raw" / "2011_09_26", tmp_path / "2011_09_26", ignore=without_gps)
    poses = recorded / "kitti_tracking" / "orbslam3_poses" / "0000.txt"
    plain = Arguments(DatasetConfig("kitti-raw", tmp_path), str(tmp_path / "s"), workers=0)

    def job(mistake: str, **changes) -> runner.Job:
        return plan(changed(plain, poses=write_poses(tmp_path / "poses.txt", poses, mistake), **changes))[0]

    assert runner.run(job("none"), workers=0).notes == []
    (note,) = runner.run(job("late 5"), workers=0).notes
    assert f"{drive} image_02: the visibility test hid 35 % of" in note and "are the poses right?" in note
    capsys.readouterr()
    for to_make in (1, 0):  # the second time the shard is there
        with pytest.raises(InputError, match=f"{drive} image_02: the visibility test hid 58 % of .* 50 %") as error:
            runner.run(job("inverted"), workers=0)
        assert "\n" not in str(error.value)
        assert f"{to_make} to make: " in capsys.readouterr().out
    assert len(Catalog(tmp_path / "s").versions()) == 2
    # A stricter test hides more, and says nothing about the poses.
    report = runner.run(job("none", visibility=VisibilityConfig(min_quadrants=2)), workers=0)
    assert report.shards[0]["hidden_fraction"] > REFUSED_HIDDEN and report.notes == [] and report.version == 3


def peak_memory(scene_args: str) -> None:
    """Makes the labels of one big scene and prints the peak resident size; run in a process of its own."""
    from dense_depth.datasets.scene import CameraFrame, Crop, Scene, Sweep
    from dense_depth.geometry import se3
    from pipelines.accumulate import Recipe

    folder = Path(scene_args)
    rng = np.random.default_rng(0)
    points = np.zeros((34_720, 5), np.float32)
    azimuth = rng.uniform(-np.pi, np.pi, len(points))
    points[:, :3] = np.column_stack([np.cos(azimuth), np.sin(azimuth), rng.uniform(-0.3, 0.1, len(points))])
    points[:, :3] *= rng.uniform(3, 60, (len(points), 1))
    points.tofile(folder / "sweep.bin")
    crops = (Crop((-2, 2), (-1, 1)),)
    sweeps = tuple(
        Sweep(f"s{i:03d}", folder / "sweep.bin", 5, 50_000 * i, se3(np.eye(3), np.array([0.4 * i, 0, 0])), crops)
        for i in range(400)
    )
    K = np.array([[1266.0, 0, 800], [0, 1266, 450], [0, 0, 1]])
    frames = []
    for c in range(6):
        yaw = np.pi / 3 * c
        forward, right = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([np.sin(yaw), -np.cos(yaw), 0])
        rotation = np.column_stack([right, [0, 0, -1], forward])
        for k in range(40):
            pose = se3(rotation, np.array([4.0 * k, 0, 0]))
            frames.append(
                CameraFrame(f"k{k:02d}", f"CAM_{c}", Path("x.jpg"), 500_000 * k, 1600, 900, K, pose, f"s{10 * k:03d}")
            )
    scene = Scene("nuscenes", "big", "big", sweeps, tuple(frames), ())
    recipe = Recipe("accumulated", 1.0, AccumulationConfig(), VisibilityConfig(), 1)
    shards = [runner.PlannedShard(f"big.CAM_{c}", "big", f"CAM_{c}", 40, 0) for c in range(6)]
    Catalog.create(folder / "store")
    job = runner.Job("accumulate", str(folder / "store"), {}, {}, shards, lambda name: None, make_labels)
    outcome = job.work(Loaded(scene, recipe), shards)
    assert outcome.error is None and len(outcome.rows) == 6
    # Not getrusage: its peak includes what the process that started this one held.
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def test_a_scene_of_forty_keyframes_and_six_cameras_stays_below_a_gigabyte_and_a_half(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[2]); import test_accumulate_job as t; t.peak_memory(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 200e3 < int(done.stdout) < 1.5e6  # kB
