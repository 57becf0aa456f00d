"""The job that completes labels: plain, under Ray, killed and resumed, and on bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import changed, let_workers_import
from PIL import Image

import pipelines.accumulate as accumulate
import pipelines.runner as runner
from catalog import Catalog
from dense_depth import InputError
from dense_depth.accumulation import AccumulationConfig
from dense_depth.completion.fill import CONFIDENCE_STEP, MAX_ROUNDING_M
from dense_depth.completion.predict import Completer, Completion, open_completer
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.images import read_image
from dense_depth.label import label_camera
from pipelines.complete import ALGORITHM, Arguments, describe_hardware, plan

SCRIPT = Path(__file__).parents[2] / "pipelines" / "complete.py"


@pytest.fixture(scope="module")
def labelled(generated, tmp_path_factory) -> Path:
    """A store with accumulated labels of the generated dataset, 12 shards of three frames, version 1."""
    store = tmp_path_factory.mktemp("labelled") / "store"
    job, _ = accumulate.plan(accumulate.Arguments(DatasetConfig("nuscenes", generated, "v1.0-synth"), str(store)))
    assert runner.run(job, workers=0).version == 1
    return store


@pytest.fixture
def store(labelled, tmp_path) -> Path:
    return shutil.copytree(labelled, tmp_path / "store")


def arguments(root: Path, store: Path, /, **changes) -> Arguments:
    common = Arguments(str(store), "1", DatasetConfig("nuscenes", root, "v1.0-synth"), method="ip-basic", workers=0)
    return changed(common, **changes)


def run(arguments: Arguments, open_model=None) -> runner.Report:
    job, notes = plan(arguments)
    if open_model:
        job = replace(job, make=replace(job.make, open_model=open_model))
    return runner.run(job, workers=arguments.workers, notes=notes)


def options(root: Path, store: Path, *more) -> list[str]:
    common = ("--ref", 1, "--dataset", "nuscenes", "--version", "v1.0-synth", "--method", "ip-basic")
    return [sys.executable, str(SCRIPT), *map(str, (*common, "--dataroot", root, "--store", store, *more))]


def command(*args, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(options(*args), capture_output=True, text=True, timeout=300, **kwargs)


@pytest.fixture(scope="module")
def reference(generated, labelled, tmp_path_factory) -> runner.Report:
    """A fault-free run in this process."""
    store = shutil.copytree(labelled, tmp_path_factory.mktemp("reference") / "store")
    return run(arguments(generated, store))


@dataclass
class Fault:
    """Opens ip-basic, and at the fifth frame of a process does something bad, as often as the marker allows."""

    marker: Path
    times: int
    act: str

    def __call__(self, device: str) -> Completer:
        identity, complete = open_completer("ip-basic")
        calls = 0

        def faulty(image, label) -> Completion:
            nonlocal calls
            calls += 1
            done = len(list(self.marker.parent.glob(f"{self.marker.name}*")))
            if calls == 5 and done < self.times:
                (self.marker.parent / f"{self.marker.name}{done}").touch()
                if self.act == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("injected")
            return complete(image, label)

        return Completer(identity, faulty)


def test_measured_pixels_stay_and_the_rest_is_what_the_method_says(generated, reference):
    catalog = Catalog(reference.store)
    before, after = catalog.version(1), catalog.version("latest")
    assert after.number == reference.version == 2
    rows = [row for row in after.rows() if row["kind"] == "completed"]
    assert len(rows) == 12 and len(after.rows()) == 24
    _, complete = open_completer("ip-basic")
    scenes = open_dataset(DatasetConfig("nuscenes", generated, "v1.0-synth")).scenes()
    frames = {(frame.sample_token, frame.camera): frame for scene in scenes for frame in scene.frames}
    completed_pixels = 0
    for row in rows[::5]:
        token = row["sample_tokens"][1]
        frame, measured = frames[token, row["camera"]], before.read(token, row["camera"])
        label = after.read(token, row["camera"], kind="completed")
        height, width, K = label_camera(frame, 0.5)
        assert label.depth_m.shape == (height, width) == (112, 200)
        assert np.array_equal(label.K, K) and label.timestamp_us == measured.timestamp_us
        small = measured.shrunk(height, width)
        depth_m, source, age = small.depth_m, small.source, small.age
        known = depth_m > 0
        assert 0.1 < known.mean() < 0.9
        for now, then in ((label.depth_m, depth_m), (label.source, source), (label.age, age)):
            assert np.array_equal(now[known], then[known])
        assert (label.confidence[known] == 255).all()
        raw = complete(read_image(frame, height, width), small)
        filled = ~known & (label.depth_m > 0)
        completed_pixels += filled.sum()
        assert np.array_equal(filled, ~known & (raw.depth_m > 0) & (raw.confidence / 255 >= 0.5))
        assert np.abs(label.depth_m - raw.depth_m)[filled].max() <= MAX_ROUNDING_M
        assert np.abs(label.confidence[filled].astype(int) - raw.confidence[filled]).max() <= CONFIDENCE_STEP / 2
        assert (label.source[filled] == 4).all() and (label.age[filled] == 0).all()
        empty = label.depth_m == 0
        assert not label.source[empty].any() and not label.confidence[empty].any()
    assert completed_pixels > 1000


def test_the_version_says_what_made_it_and_from_what(reference):
    catalog = Catalog(reference.store)
    before, after = catalog.version(1), catalog.version(2)
    assert after.operation == "complete" and after.inputs["dataset"] == "nuscenes"
    assert (after.inputs["labels_version"], after.inputs["labels_manifest"]) == (1, before.manifest)
    assert after.inputs["scenes"] == ["synth-0000", "synth-0001"]
    assert after.recipe == {
        "kind": "completed",
        "input_kind": "accumulated",
        "completer": open_completer("ip-basic").identity,
        "scale": 0.5,
        "min_confidence": 0.5,
        "hardware": describe_hardware("cpu"),
        "algorithm": ALGORITHM,
    }
    assert "torch" in after.recipe["hardware"]
    sources = {(row["scene_token"], row["camera"]): row["path"] for row in before.rows()}
    for row in after.rows():
        if row["kind"] == "completed":
            assert row["source_shards"] == [sources[row["scene_token"], row["camera"]]]
            shares = [row["quality"][f"{name}_fraction"] for name in ("key", "static", "moving", "completed")]
            assert sum(shares) == pytest.approx(1) and 0.5 <= row["quality"]["mean_confidence"] <= 1
    assert catalog.verify(2) == [] and catalog.gc(older_than_s=0) == []


def test_a_second_run_makes_nothing_and_a_dry_run_says_so(generated, reference):
    again = run(arguments(generated, Path(reference.store), ref="latest"))
    assert (again.shards_made, again.shards_done_before, again.version) == (0, 12, 2)
    dry = command(generated, reference.store, "--dry-run", "--scale", 0.25)
    assert dry.returncode == 0 and "12 to make: 36 labels, about" in dry.stdout
    assert len(Catalog(reference.store).versions()) == 2


def test_a_killed_worker_is_replaced_and_the_bytes_are_the_same(generated, reference, store, monkeypatch):
    let_workers_import(monkeypatch, __file__)  # Fault
    report = run(arguments(generated, store, workers=2), Fault(store.parent / "marker", 1, "kill"))
    assert len(list(store.parent.glob("marker*"))) == 1
    assert report.manifest == reference.manifest and not report.failed


def test_a_killed_driver_is_resumed_where_it_stopped(generated, reference, store):
    """The driver dies in the second shard; the same job makes the others, with one worker."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path\n"
        "from test_complete_job import Fault, arguments, run\n"
        "store = Path(sys.argv[2])\n"
        "run(arguments(Path(sys.argv[1]), store), Fault(store.parent / 'marker', 1, 'kill'))"
    )
    driver = [sys.executable, "-c", code, str(generated), str(store), str(Path(__file__).parent)]
    assert subprocess.run(driver, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    assert len(list(store.glob("receipts/*/*.json"))) == 1 and len(Catalog(store).versions()) == 1
    done = command(generated, store, "--workers", 1, "--tag", "main", "--summary", store.parent / "s.json")
    assert done.returncode == 0 and not done.stderr, done.stderr
    summary = json.loads((store.parent / "s.json").read_text())
    assert (summary["shards_done_before"], summary["shards_made"]) == (1, 11)
    assert summary["manifest"] == reference.manifest
    assert f"version 2, tag main, manifest {reference.manifest}" in done.stdout and "completed" in done.stdout
    assert not list(store.glob("receipts/*/*"))


def test_a_shard_that_fails_once_is_retried(generated, reference, store):
    report = run(arguments(generated, store), Fault(store.parent / "marker", 1, "raise"))
    assert report.manifest == reference.manifest and not report.failed


def test_threads_make_the_same_bytes(generated, reference, store):
    """What a GPU's worker does: threads read ahead and compute, and one writes behind."""
    job, _ = plan(arguments(generated, store))
    make = replace(job.make, readers=3, completers=2)
    report = runner.run(replace(job, make=make, on_gpus=True), workers=0)
    assert report.manifest == reference.manifest and report.shards_made == 12


def test_each_label_says_how_many_sweeps_it_was_made_from(generated, tmp_path):
    """The first and the last label of a drive see sweeps of one side alone."""
    data = DatasetConfig("nuscenes", generated, "v1.0-synth", ("CAM_FRONT",))
    window = AccumulationConfig(past_s=0.2, future_s=0.2)
    made_with = accumulate.Arguments(data, str(tmp_path / "s"), ("synth-0000",), scale=0.25, accumulation=window)
    runner.run(accumulate.plan(made_with)[0], workers=0)
    run(arguments(generated, tmp_path / "s", scenes=("synth-0000",), cameras=("CAM_FRONT",), scale=0.25))
    version = Catalog(tmp_path / "s").version("latest")
    accumulated, completed = sorted(version.rows(), key=lambda row: row["kind"])
    counts = [
        [version.n_sweeps(token, "CAM_FRONT", row["kind"]) for token in row["sample_tokens"]]
        for row in (accumulated, completed)
    ]
    assert counts[0] == counts[1] and counts[0][1] > max(counts[0][0], counts[0][2])
    assert completed["n_sweeps_min"] == min(counts[1])


def test_another_model_or_other_hardware_than_planned_is_refused(generated, store):
    with pytest.raises(InputError, match="other"):
        run(arguments(generated, store), open_other)
    job, _ = plan(arguments(generated, store))
    recipe = replace(job.make.recipe, hardware="an abacus")
    shard = job.shards[0]
    with pytest.raises(InputError, match="abacus"):
        next(replace(job.make, recipe=recipe)(job.load(shard.scene), [shard]))


def open_other(device: str) -> Completer:
    return Completer({"method": "other"}, open_completer("ip-basic").complete)


def test_labels_smaller_than_asked_for_keep_their_size(generated, tmp_path):
    made_with = accumulate.Arguments(
        DatasetConfig("nuscenes", generated, "v1.0-synth", ("CAM_FRONT",)),
        str(tmp_path / "s"),
        ("synth-0000",),
        scale=0.25,
    )
    runner.run(accumulate.plan(made_with)[0], workers=0)
    asked = arguments(generated, tmp_path / "s", scenes=("synth-0000",), cameras=("CAM_FRONT",))
    report = run(asked)
    assert any("56" in note and "100" in note for note in report.notes)
    version = Catalog(tmp_path / "s").version("latest")
    token = version.rows()[0]["sample_tokens"][0]
    small, completed = (version.read(token, "CAM_FRONT", kind) for kind in ("accumulated", "completed"))
    assert completed.depth_m.shape == (56, 100) and np.array_equal(completed.K, small.K)
    assert np.array_equal(completed.depth_m[small.depth_m > 0], small.depth_m[small.depth_m > 0])
    assert run(replace(asked, scale=0.125, ref="1")).shards_made == 1
    assert Catalog(tmp_path / "s").version("latest").read(token, "CAM_FRONT", "completed").depth_m.shape == (28, 50)


def test_a_shard_is_named_by_all_that_determines_it(generated, labelled, tmp_path):
    def names(**changes) -> set[str]:
        asked = {"scenes": ("synth-0000",), "cameras": ("CAM_FRONT",)} | changes
        return {shard.shard_id for shard in plan(arguments(asked.pop("root", generated), labelled, **asked))[0].shards}

    (name,) = names()
    assert names() == {name}
    root = tmp_path / "data"
    shutil.copytree(generated, root, ignore=shutil.ignore_patterns("truth", "sweeps"))
    assert names(root=root) == {name}
    for path in sorted((root / "samples" / "CAM_FRONT").iterdir())[:3]:
        path.write_bytes(path.read_bytes() + b"\0")
    all_names = [{name}, names(root=root), names(scale=0.25), names(min_confidence=0.75)]
    assert len(set.union(*all_names)) == 4


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def zero_tail(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def halve(path: Path) -> None:
    with Image.open(path) as image:
        image.resize((200, 112)).save(path)


DAMAGES = {
    "cut short": cut,
    "zeros at the end": zero_tail,
    "no image": lambda path: path.write_bytes(b"x" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "another size": halve,
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_image_is_one_line_and_no_version(generated, store, tmp_path, name):
    root = tmp_path / "data"
    shutil.copytree(generated, root, ignore=shutil.ignore_patterns("truth", "sweeps"))
    path = sorted((root / "samples" / "CAM_FRONT").iterdir())[4]
    DAMAGES[name](path)
    with pytest.raises(InputError) as error:
        run(arguments(root, store, cameras=("CAM_FRONT",)))
    assert path.name in str(error.value) and "\n" not in str(error.value)
    assert len(Catalog(store).versions()) == 1


def test_labels_of_another_camera_or_dataset_are_refused(generated, store, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(generated, root, ignore=shutil.ignore_patterns("truth", "sweeps"))
    table = root / "v1.0-synth" / "calibrated_sensor.json"
    rows = json.loads(table.read_text())
    for row in rows:
        if row["camera_intrinsic"]:
            row["camera_intrinsic"][0][0] *= 1.01
    table.write_text(json.dumps(rows))
    with pytest.raises(InputError, match="intrinsics"):
        run(arguments(root, store))
    other = tmp_path / "other"
    shutil.copytree(generated, other, ignore=shutil.ignore_patterns("truth", "sweeps", "samples"))
    text = {path: path.read_text() for path in (other / "v1.0-synth").glob("*.json")}
    for row in json.loads(text[other / "v1.0-synth" / "sample.json"]):
        text = {path: content.replace(row["token"], row["token"][::-1]) for path, content in text.items()}
    for path, content in text.items():
        path.write_text(content)
    with pytest.raises(InputError, match=f"is not in {other}"):
        plan(arguments(other, store))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ref": "9"}, "9"),
        ({"ref": "nobody"}, "nobody"),
        ({"kind": "lidar"}, "lidar"),
        ({"dataset": "kitti-raw", "version": None}, "kitti-raw"),
        ({"scenes": ("scene-9999",)}, "scene-9999"),
        ({"cameras": ("CAM_ROOF",)}, "CAM_ROOF"),
        ({"dataroot": Path("nowhere")}, "nowhere"),
        ({"store": "/nowhere"}, "/nowhere"),
        ({"tag": "../up"}, "../up"),
        ({"scale": 1.5}, "--scale"),
        ({"min_confidence": 1.1}, "--min-confidence"),
        ({"workers": -1}, "--workers"),
        ({"checkpoint": Path("x.safetensors")}, "x.safetensors"),
        ({"method": "network", "checkpoint": Path("gone.safetensors")}, "gone.safetensors"),
    ],
)
def test_bad_arguments_are_one_line(generated, labelled, changes, says):
    with pytest.raises(InputError) as error:
        run(arguments(generated, labelled, **changes))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert len(Catalog(labelled).versions()) == 1


def test_the_command_ends_with_status_2_and_a_line_on_stderr(generated, labelled):
    done = command(generated, labelled, "--workers", 0, "--kind", "lidar")
    assert done.returncode == 2 and done.stderr.startswith("complete: version 1: no labels of kind lidar")
    assert len(done.stderr.splitlines()) == 1
