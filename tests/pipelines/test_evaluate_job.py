"""The whole job: figures against truth and against the held-out key sweep, their version, the gate, and bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import changed

import pipelines.runner as runner
from catalog import Catalog, manifest
from catalog.__main__ import main as catalog_main
from catalog.figures import COLUMNS
from catalog.manifest import Row, shard_row
from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.truth import read_truth
from dense_depth.label import Label, Source, dequantise, quantise
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.shards import ShardContent, write_shard
from pipelines import accumulate, evaluate

SCRIPT = Path(__file__).parents[2] / "pipelines" / "evaluate.py"
MEANS = ("mae_m", "rmse_m", "abs_rel", "delta_125", "behind", "in_front")
SCENES, CAMERAS = ("synth-0000",), ("CAM_BACK", "CAM_FRONT")


def make_labels(root: Path, store: Path, **changes) -> runner.Report:
    arguments = accumulate.Arguments(DatasetConfig("nuscenes", root, "v1.0-synth", CAMERAS), str(store), SCENES)
    return runner.run(accumulate.plan(changed(arguments, **changes))[0], workers=0)


@pytest.fixture(scope="module")
def labels(generated, tmp_path_factory) -> Path:
    """A store with one version, six labels of two cameras, that stays as it is."""
    store = tmp_path_factory.mktemp("labels") / "store"
    make_labels(generated, store)
    return store


@pytest.fixture
def store(labels, tmp_path) -> Path:
    return Path(shutil.copytree(labels, tmp_path / "s"))


def arguments(root: Path, store: Path, **changes) -> evaluate.Arguments:
    plain = evaluate.Arguments(
        str(store), "latest", DatasetConfig("nuscenes", root, "v1.0-synth"), truth=True, workers=0
    )
    return changed(plain, **changes)


def main(monkeypatch, capsys, root, store, *options) -> tuple[int, str, str]:
    """Runs the command in this process: exit status, stdout, stderr."""
    given = {"--ref": "latest", "--dataset": "nuscenes", "--dataroot": root, "--version": "v1.0-synth", "--workers": 0}
    options = [str(option) for option in options]
    parts = [str(part) for name, value in given.items() if name not in options for part in (name, value)]
    monkeypatch.setattr(sys, "argv", ["evaluate", "--store", str(store), *parts, *options])
    status = evaluate.main()
    out, err = capsys.readouterr()
    return status, out, err


def test_figures_are_measured_printed_and_kept_in_a_version(generated, store, monkeypatch, capsys, tmp_path):
    status, out, _ = main(monkeypatch, capsys, generated, store, "--truth", "--summary", tmp_path / "s.json")
    assert status == 0 and not [line for line in out.splitlines()[:-1] if len(line) > 80]  # the last: a manifest
    assert "version 1: 6 accumulated labels against truth" in out and "false labels by cause" in out
    assert "100.00" in out and "…" not in out  # labels on sky
    summary = json.loads((tmp_path / "s.json").read_text())
    first, second = Catalog(store).versions()
    assert (second.number, second.operation, summary["version"], summary["evaluated"]) == (2, "evaluate", 2, 1)
    assert (second.recipe, second.inputs) == (first.recipe, first.inputs)

    errors = []
    for old, new in zip(first.rows(), second.rows()):
        truth = read_truth(generated, new["scene_token"], new["camera"])
        own, n_surface = [], 0
        for token in new["sample_tokens"]:
            true = np.asarray(truth.depth_m[truth.sample_tokens.index(token)]).astype(float)
            label = first.read(token, new["camera"])
            own += [(label.depth_m.astype(float) - true, true, label.depth_m > 0)]
            n_surface += np.count_nonzero(true)
        error, true, there = (np.stack(part) for part in zip(*own))
        error, sky, true = error[there], true[there] == 0, true[there]
        quality = new["quality"]
        assert quality["coverage"] == pytest.approx(np.count_nonzero(~sky) / n_surface)
        assert quality["mae_m"] == pytest.approx(np.abs(error[~sky]).mean())
        assert quality["rmse_m"] == pytest.approx(np.sqrt((error[~sky] ** 2).mean()))
        assert quality["behind"] == pytest.approx(((error > np.maximum(0.5, 0.05 * true)) & ~sky).mean())
        assert quality["in_front"] == pytest.approx(((error < -np.maximum(0.5, 0.05 * true)) | sky).mean())
        assert quality["on_sky"] == pytest.approx(sky.mean())
        assert quality["evaluated_rows"] == 225 and quality["held_out_mae_m"] is None
        figures = ("evaluated_rows", "coverage", *MEANS, "on_sky")
        assert new == old | {"quality": old["quality"] | {name: quality[name] for name in figures}}
        assert summary["cameras"][new["camera"]]["behind"] == quality["behind"]
        errors.append(error)
    assert summary["all"]["n"] == sum(map(len, errors)) > 10_000
    assert sum(cause["share"] for cause in summary["causes"]) == pytest.approx(1)


def test_a_dry_run_says_what_would_be_measured_and_commits_nothing(generated, store, monkeypatch, capsys):
    status, out, _ = main(monkeypatch, capsys, generated, store, "--truth", "--dry-run")
    assert status == 0 and "version 1, 6 accumulated labels against truth" in out
    assert len(Catalog(store).versions()) == 1 and "MAE" not in out


def test_two_workers_say_the_same_and_a_second_run_commits_nothing(generated, store, tmp_path):
    options = [
        "--store",
        store,
        "--ref",
        1,
        "--dataset",
        "nuscenes",
        "--dataroot",
        generated,
        "--version",
        "v1.0-synth",
    ]
    command = [sys.executable, SCRIPT, *options, "--truth", "--workers", 2, "--summary", tmp_path / "two.json"]
    done = subprocess.run([*map(str, command), "--tag", "good"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    here = evaluate.evaluate(arguments(generated, store, ref="1", tag="good"))
    assert json.loads((tmp_path / "two.json").read_text()) == here
    assert len(Catalog(store).versions()) == here["version"] == 2 and Catalog(store).tags() == {"good": 2}
    assert Catalog(store).verify("good") == []


def test_labels_that_were_measured_are_not_made_again(generated, store):
    measured = evaluate.evaluate(arguments(generated, store))
    again = make_labels(generated, store)
    assert (again.shards_done_before, again.shards_made, again.version) == (2, 0, 2)
    assert again.manifest == measured["manifest"] and len(Catalog(store).versions()) == 2


def test_labels_of_an_older_program_can_be_measured(generated, tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(manifest, "QUALITY", tuple(name for name, f in COLUMNS.items() if "made" in f.places))
        manifest.schema.cache_clear()
        make_labels(generated, tmp_path / "s", cameras=("CAM_FRONT",))
    manifest.schema.cache_clear()
    assert evaluate.evaluate(arguments(generated, tmp_path / "s"))["version"] == 2
    assert Catalog(tmp_path / "s").version(2).rows()[0]["quality"]["mae_m"] < 1


def test_a_smaller_label_and_its_bottom_rows(generated, tmp_path, monkeypatch, capsys):
    make_labels(generated, tmp_path / "s", scale=0.44)
    whole = evaluate.evaluate(arguments(generated, tmp_path / "s"))
    bottom = evaluate.evaluate(arguments(generated, tmp_path / "s", crop_height=64))
    assert whole["all"]["pixels"] == 6 * 99 * 176 and bottom["all"]["pixels"] == 6 * 64 * 176
    assert 0 < bottom["all"]["n"] < whole["all"]["n"]
    # By centres the label of a pixel is compared with one place in it, by areas with the best of all.
    assert whole["all"]["at_centre"]["in_front"] > whole["all"]["in_front"]
    assert (whole["version"], bottom["version"]) == (2, 3)
    assert {row["quality"]["evaluated_rows"] for row in Catalog(tmp_path / "s").version(3).rows()} == {64}

    # The commands of the catalog tell these figures too.
    monkeypatch.setattr(sys, "argv", ["catalog", "--store", str(tmp_path / "s"), "show", "3"])
    assert catalog_main() == 0 and "mae_m" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["catalog", "--store", str(tmp_path / "s"), "diff", "2", "3"])
    assert catalog_main() == 0
    (rows,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("evaluated_rows"))
    assert rows == ["evaluated_rows", "99", "64"]  # neither way is better


def test_without_the_key_sweep_on_its_pixels(generated, store, monkeypatch, capsys):
    status, out, _ = main(monkeypatch, capsys, generated, store)
    assert status == 0 and "against the held-out key sweep" in out
    scene = next(open_dataset(DatasetConfig("nuscenes", generated, "v1.0-synth")).scenes(["synth-0000"]))
    for row in Catalog(store).version(2).rows():
        frames, error, n_key = scene.frames_of(row["camera"]), [], 0
        key_only = AccumulationConfig(past_s=0, future_s=0, dynamics="none")
        for frame in frames:
            maps = []
            for config, visibility, without in (
                (AccumulationConfig(), VisibilityConfig(), [frame.key_sweep]),
                (key_only, VisibilityConfig(visibility="none"), []),
            ):
                cloud = SceneCloud(scene, frames, config)
                label, _ = render_label(cloud, frame, frame.K, visibility, new_keys(225, 400), without=without)
                maps.append(label.depth_m)
            both = (maps[0] > 0) & (maps[1] > 0)
            error += [(maps[0] - maps[1])[both]]
            n_key += np.count_nonzero(maps[1])
        error = np.concatenate(error)
        assert len(error) > 100
        assert row["quality"]["held_out_mae_m"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
        assert row["quality"]["held_out_compared"] == pytest.approx(len(error) / n_key)
        assert row["quality"]["mae_m"] is None


def test_the_gate(generated, store, monkeypatch, capsys):
    options = ("--truth", "--tag", "good", "--cameras", "CAM_FRONT")
    limits = ("--max-see-through", 0, "--max-ghosts", 0, "--min-coverage", 0.99)
    status, out, err = main(monkeypatch, capsys, generated, store, *options, *limits)
    assert status == 3 and Catalog(store).tags() == {}
    assert "CAM_FRONT" in out and len(Catalog(store).versions()) == 2  # the figures are known, but not good enough
    lines = err.splitlines()
    assert [name in line for name, line in zip(limits[::2], lines)] == [True] * len(lines) == [True] * 3
    limits = ("--max-see-through", 0.5, "--max-ghosts", 0.5, "--min-coverage", 0.1)
    status, _, err = main(monkeypatch, capsys, generated, store, *options, *limits)
    assert status == 0 and err == "" and Catalog(store).tags() == {"good": 2}


def test_figures_of_labels_that_were_replaced_are_not_recorded(generated, store):
    """Else they would bring the old labels back."""
    make_labels(generated, store, scale=0.5)
    summary = evaluate.evaluate(arguments(generated, store, ref="1", tag="old"))
    assert "not in the latest version" in summary["notes"][-1] and summary["all"]["mae_m"] > 0
    assert len(Catalog(store).versions()) == 2 and Catalog(store).tags() == {"old": 1}


def test_labels_that_are_replaced_while_figures_are_committed_stay(generated, store, monkeypatch):
    """A job commits after evaluate has read the latest version: its labels stay, and the others get their figures."""
    plain = Catalog.commit

    def commit(self, rows, **given):
        monkeypatch.setattr(Catalog, "commit", plain)
        make_labels(generated, store, scale=0.5, cameras=("CAM_BACK",))
        return plain(self, rows, **given)

    monkeypatch.setattr(Catalog, "commit", commit)
    summary = evaluate.evaluate(arguments(generated, store, tag="old"))
    assert "1 of the 2 shards are not in the latest version" in summary["notes"][-1]
    assert summary["version"] == 1 and Catalog(store).tags() == {"old": 1}  # it is all of its labels that were measured
    back, front = Catalog(store).version(3).rows()
    assert (back["width"], back["quality"]["mae_m"]) == (200, None)
    assert front["width"] == 400 and front["quality"]["mae_m"] > 0


def test_figures_that_two_runs_measure_at_a_time_are_both_kept(generated, store, monkeypatch):
    plain = Catalog.commit

    def commit(self, rows, **given):
        monkeypatch.setattr(Catalog, "commit", plain)
        evaluate.evaluate(arguments(generated, store, truth=False))
        return plain(self, rows, **given)

    monkeypatch.setattr(Catalog, "commit", commit)
    assert evaluate.evaluate(arguments(generated, store))["version"] == 3
    for row in Catalog(store).version(3).rows():
        assert row["quality"]["mae_m"] is not None and row["quality"]["held_out_mae_m"] is not None


def test_the_recipe_of_labels_outlives_the_version_that_made_them(generated, store):
    evaluate.evaluate(arguments(generated, store))
    assert Catalog(store).expire(keep_last=1) == [1]
    assert evaluate.evaluate(arguments(generated, store, truth=False))["version"] == 3


def test_pictures(generated, store, tmp_path):
    summary = evaluate.evaluate(arguments(generated, store, pictures=tmp_path / "pictures", worst=2))
    names = {"worst-01.png", "worst-02.png", "ordinary-CAM_BACK.png", "ordinary-CAM_FRONT.png"}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names == set(summary["pictures"])
    for name in names:
        assert cv2.imread(str(tmp_path / "pictures" / name)).shape == (2 * 562, 2000, 3)


def complete(root: Path, store: Path) -> list[Row]:
    """Commits completed labels of CAM_FRONT, hand-made from the truth; returns their rows.

    Of each label the first 1000 pixels that show a surface are measured and right. The next 1000 state a chance of 0.8,
    and 800 are right, 200 are 1 m too far; the next 500 are certain, and 400 are right, 100 are 3 m too near. And 100
    are certain on sky.
    """
    catalog = Catalog(store)
    given = next(row for row in catalog.version("latest").rows() if row["camera"] == "CAM_FRONT")
    truth = read_truth(root, given["scene_token"], "CAM_FRONT")
    labels = [catalog.version("latest").read(token, "CAM_FRONT", "accumulated") for token in given["sample_tokens"]]
    depth_m = np.zeros((len(labels), *labels[0].depth_m.shape))
    source, confidence = np.zeros(depth_m.shape, np.uint8), np.zeros(depth_m.shape, np.uint8)
    for t, label in enumerate(labels):
        true = np.asarray(truth.depth_m[truth.sample_tokens.index(label.sample_token)])
        at = np.flatnonzero((true > 5) & (true < 200))[:2500]
        flat = depth_m[t].reshape(-1)
        flat[at] = true.reshape(-1)[at] + np.repeat([0, 0, 1, 0, -3], [1000, 800, 200, 400, 100])
        source[t].reshape(-1)[at] = np.repeat([Source.STATIC, Source.COMPLETED], [1000, 1500])
        confidence[t].reshape(-1)[at] = np.repeat([255, 204, 255], [1000, 1000, 500])
        sky = np.flatnonzero(true == 0)[:100]
        flat[sky], source[t].reshape(-1)[sky], confidence[t].reshape(-1)[sky] = 50, Source.COMPLETED, 255
    content = ShardContent(
        kind="completed",
        dataset="nuscenes",
        scene_token=given["scene_token"],
        camera="CAM_FRONT",
        labels=tuple(
            Label.from_maps(
                *(dequantise(quantise(depth_m[t])), source[t], None, confidence[t]),
                K=label.K,
                sample_token=label.sample_token,
                camera="CAM_FRONT",
                timestamp_us=label.timestamp_us,
            )
            for t, label in enumerate(labels)
        ),
        n_sweeps=(1,) * len(labels),
    )
    recipe = {"method": "hand-made"}
    row = shard_row(content, write_shard(store, content), recipe, shard_id="completed.0", source_shards=[given["path"]])
    return catalog.commit([row], operation="complete", recipe=recipe, inputs={}, summary={}).rows()


def test_completed_labels_and_their_confidence(generated, store, monkeypatch, capsys, tmp_path):
    complete(generated, store)
    options = ("--truth", "--kind", "completed", "--summary", tmp_path / "s.json", "--pictures", tmp_path / "p")
    status, out, err = main(monkeypatch, capsys, generated, store, *options)
    assert (status, err) == (0, "") and not [line for line in out.splitlines()[:-1] if len(line) > 80]
    assert "3 completed labels against truth" in out and "calibration error" in out and "…" not in out
    summary = json.loads((tmp_path / "s.json").read_text())
    origins, found = summary["origins"], summary["calibration"]
    assert (origins["measured"]["n"], origins["completed"]["n"]) == (3000, 3 * 1600)
    assert origins["measured"]["mae_m"] < 0.002 and origins["measured"]["within"] == 1
    mae_m = (200 * 1 + 100 * 3) / 1500
    assert origins["completed"]["mae_m"] == pytest.approx(mae_m, abs=0.002)  # rounded to 1/256 m
    assert summary["source"]["completed"]["on_sky"] == pytest.approx(100 / 1600)
    # 1000 state 0.8 and it is so; of 600 that are certain 400 are within.
    assert [group["within"] for group in found["bins"]] == pytest.approx([0.8, 400 / 600])
    assert found["error"] == pytest.approx(600 / 1600 * (1 - 400 / 600))
    assert found["within"] == pytest.approx(1200 / 1600)
    tenths = [0.8] * 6 + [(40 * 0.8 + 120 * 4 / 6) / 160] + [4 / 6] * 3
    assert [tenth["within"] for tenth in found["tenths"]] == pytest.approx(tenths)

    version = Catalog(store).version(summary["version"])
    quality = {row["kind"]: row["quality"] for row in version.rows() if row["camera"] == "CAM_FRONT"}
    assert quality["completed"]["completed_mae_m"] == origins["completed"]["mae_m"]
    assert quality["completed"]["completed_within"] == pytest.approx(1200 / 1600)
    assert quality["completed"]["calibration_error"] == pytest.approx(found["error"])
    assert quality["accumulated"]["calibration_error"] is quality["accumulated"]["mae_m"] is None
    assert version.recipe == {"method": "hand-made"}

    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names == set(summary["pictures"]) and "calibration.png" in names
    assert cv2.imread(str(tmp_path / "p" / "ordinary-CAM_FRONT.png")).shape == (3 * 562, 2000, 3)

    status, _, err = main(monkeypatch, capsys, generated, store, "--kind", "completed")
    assert status == 2 and len(err.splitlines()) == 1 and "only accumulated labels" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--ref", "7"), "'7'"),
        (("--kind", "completed"), "completed (nuscenes)"),
        (("--scenes", "scene-9999"), "scene-9999"),
        (("--scenes", "synth-0001"), "no labels of the scenes"),
        (("--cameras", "CAM_FRONT_LEFT"), "CAM_FRONT_LEFT"),
        (("--crop-height", "999"), "--crop-height 999"),
        (("--max-ghosts", "3"), "--max-ghosts 3"),
        (("--workers", "-1"), "--workers -1"),
        (("--tag", "latest"), "'latest'"),
        (("--summary", "/nowhere/at/all.json"), "/nowhere/at/all.json"),
        (("--summary", "/"), "--summary /: cannot be written"),
        (("--pictures", "/dev/null/p"), "--pictures /dev/null/p: cannot be written"),
        (("--version", "v9"), "v9"),
    ],
)
def test_bad_options_are_one_line(generated, labels, monkeypatch, capsys, options, says):
    status, _, err = main(monkeypatch, capsys, generated, labels, "--truth", *options)
    assert status == 2 and len(err.splitlines()) == 1 and says in err
    assert len(Catalog(labels).versions()) == 1


def edit(table: str, change):
    def damage(root: Path) -> None:
        path = root / "v1.0-synth" / f"{table}.json"
        rows = json.loads(path.read_text())
        for row in rows:
            change(row)
        path.write_text(json.dumps(rows))

    return damage


def rename_sample(root: Path) -> None:
    token = json.loads((root / "v1.0-synth" / "sample.json").read_text())[1]["token"]
    for path in (root / "v1.0-synth").iterdir():
        path.write_text(path.read_text().replace(token, "another"))


def narrow(row) -> None:
    row["width"] = min(row["width"], 380)


def shift_ego(row) -> None:
    row["translation"][0] += 0.5


def lose_truth(root: Path) -> None:
    (root / "truth").unlink()


def spoil_truth(root: Path) -> None:
    (root / "truth").unlink()
    shutil.copytree((root / "samples").resolve().parent / "truth", root / "truth")
    for chunk in (root / "truth").glob("*/CAM_FRONT.zarr/depth_m/c/1/0/0"):
        chunk.unlink()


@pytest.mark.parametrize(
    ("damage", "options", "says"),
    [
        (rename_sample, ("--truth",), "is it the dataset of these labels?"),
        (lose_truth, ("--truth",), "no truth for this scene and camera"),
        (spoil_truth, ("--truth",), "depth_m are lost"),
        (edit("sample_data", narrow), ("--truth",), "their intrinsics differ"),
        (edit("ego_pose", shift_ego), (), "these labels were not made from"),
    ],
)
def test_another_dataset_is_one_line(generated, labels, tmp_path, monkeypatch, capsys, damage, options, says):
    root = tmp_path / "data"
    root.mkdir()
    shutil.copytree(generated / "v1.0-synth", root / "v1.0-synth")
    for name in ("maps", "samples", "sweeps", "truth"):
        (root / name).symlink_to(generated / name)
    damage(root)
    status, _, err = main(monkeypatch, capsys, root, labels, *options)
    assert status == 2 and len(err.splitlines()) == 1 and says in err
    assert len(Catalog(labels).versions()) == 1
