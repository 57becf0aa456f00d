"""The detector's trainer as a whole, at its smallest: runs, resumes, scores, compares, refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import changed

import training.compare
import training.evaluate
import training.train
from dense_depth import InputError
from dense_depth.accumulation import AccumulationConfig
from dense_depth.checkpoint import write_checkpoint
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import Scene
from pipelines import accumulate
from pipelines.runner import run
from training.compare import Arguments as CompareArguments
from training.compare import compare, differences, interval
from training.detection.data import DataConfig, DetectionData, collate
from training.evaluate import DepthScores, _has_lidar, score
from training.models.checkpoint import load_detector, save_detector
from training.models.detector import Detector
from training.models.sizes import SIZES
from training.train import Arguments, detector_config, main, train

SCRIPT = Path(__file__).parents[2] / "training" / "train.py"


@pytest.fixture(scope="module")
def store(generated, tmp_path_factory) -> str:
    """Labels of kinds lidar and accumulated of the front camera and the one behind."""
    path = str(tmp_path_factory.mktemp("train") / "store")
    for kind in ("lidar", "accumulated"):
        job, _ = accumulate.plan(
            accumulate.Arguments(
                DatasetConfig("nuscenes", generated, "v1.0-synth", ("CAM_FRONT", "CAM_BACK")),
                path,
                kind=kind,
                accumulation=AccumulationConfig(),
            )
        )
        run(job, workers=0)
    return path


@pytest.fixture
def arguments(generated, store, tmp_path) -> Arguments:
    of = DatasetConfig("nuscenes", generated, "v1.0-synth", ("CAM_FRONT", "CAM_BACK"))
    return Arguments(
        DataConfig(of, "accumulated", store, "latest", ("synth-0000",), ("synth-0000",)),
        tmp_path / "run",
        size="tiny",
        steps=2,
        batch=2,
        workers=0,
        threads=1,
        save_every=1,
        score=False,
    )


def scenes_of(data: DataConfig) -> list[Scene]:
    return [*open_dataset(data.of).scenes(data.val)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_detector(out / "detector.safetensors")[0].state_dict()


def test_killed_and_resumed_is_as_if_nothing_had_happened(arguments, tmp_path, monkeypatch, capsys):
    train(arguments)
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2/2")]
    save, killed = training.train.save_state, replace(arguments, out=tmp_path / "killed")

    def save_and_die(*parts):
        save(*parts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.train, "save_state", save_and_die)
        train(killed)
    assert not (killed.out / "detector.safetensors").exists()
    train(killed)
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2/2")]
    resumed = weights(killed.out)
    for name, value in weights(arguments.out).items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-6, atol=1e-6)
    # The line of the first run is a mean over both steps; the second step's own loss follows from equal weights.
    assert line and again and "depth_nonfinite 0.000" in again[0]
    with pytest.raises(InputError, match="another lr"):
        train(replace(killed, lr=1e-3))


def test_the_depth_source_changes_the_labels_alone(arguments, tmp_path):
    """Without labels there is no depth loss; with equal seeds all begins alike and sees the same images."""
    sources = {}
    for source in ("none", "lidar", "accumulated"):
        data = DetectionData(
            replace(arguments.data, depth_source=source, past=0), scenes_of(arguments.data), augment=True, seed=3
        )
        sources[source] = data[1, 5]
    for source in ("lidar", "accumulated"):
        torch.testing.assert_close(sources[source].images, sources["none"].images)
        np.testing.assert_array_equal(sources[source].boxes[0].boxes, sources["none"].boxes[0].boxes)
    counts = {source: int((batch.depth_m > 0).sum()) for source, batch in sources.items()}
    assert counts["none"] == 0 < counts["lidar"] < counts["accumulated"]
    torch.manual_seed(0)
    detector = Detector(SIZES["tiny"])
    batch = collate([sources["accumulated"]])
    terms = detector.losses(detector(batch.images, batch.cameras), batch, supervise_depth=True)
    without = detector.losses(detector(batch.images, batch.cameras), batch, supervise_depth=False)
    assert terms["depth"] > 0 and "depth" not in without
    torch.testing.assert_close(terms["loss"] - terms["depth"], without["loss"], rtol=1e-4, atol=1e-3)


def test_parity_is_the_reference(arguments):
    config = detector_config(replace(arguments, parity="bevdepth"))
    assert config.model.parity and config.depth_loss.parity and config.depth_targets.mode == "min"
    assert config.head.targets.rule == "trunc"
    detector = Detector(config)
    assert detector.lifting.bins.frustum_m(True)[0] == 2.0  # the near border, as there


def test_scores_come_from_the_whole_way(arguments, tmp_path, monkeypatch):
    """From images to nuScenes' evaluation, and depth against both references."""
    torch.manual_seed(0)
    detector = Detector(SIZES["tiny"])
    kept = {}
    forward = Detector.forward

    def remember(self, images, cameras):
        kept["cameras"] = cameras
        return forward(self, images, cameras)

    monkeypatch.setattr(Detector, "forward", remember)
    scores = score(detector, arguments.data, scenes_of(arguments.data), torch.device("cpu"), tmp_path / "results.json")
    assert set(scores["depth"]) == {"lidar", "truth"} and scores["depth"]["truth"]["0-60 m"]["abs_rel"] > 0.05
    assert 0 <= scores["mean_ap"] < 0.1
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(results) == 3 and sum(scores["class_boxes"].values()) > 0
    assert kept["cameras"][0].K.shape == (1, 2, 3, 3)


def test_single_sweeps_of_other_data_are_no_reference(arguments, tmp_path):
    """Labels of another dataset or of other scenes in the same version say nothing about these."""
    data, scenes = arguments.data, scenes_of(arguments.data)
    assert _has_lidar(data, scenes)
    others = [
        replace(s, frames=tuple(replace(f, sample_token=f"other-{f.sample_token}") for f in s.frames)) for s in scenes
    ]
    assert not _has_lidar(data, others) and not _has_lidar(replace(data, store=None), scenes)
    torch.manual_seed(0)
    foreign = changed(data, dataset="kitti-raw")  # the version has single sweeps of nuscenes alone
    scores = score(Detector(SIZES["tiny"]), foreign, scenes, torch.device("cpu"), tmp_path / "results.json")
    assert set(scores["depth"]) == {"truth"}


def test_a_checkpoint_is_scored_again(arguments, tmp_path, monkeypatch, capsys):
    """By the command, with a process that reads data: the same scores."""
    torch.manual_seed(0)
    detector, data = Detector(SIZES["tiny"]), arguments.data
    save_detector(tmp_path / "detector.safetensors", detector, {})
    expected = score(detector, data, scenes_of(data), torch.device("cpu"), tmp_path / "results.json")
    given = {"dataset": "nuscenes", "dataroot": data.of.dataroot, "version": data.of.version, "store": data.store}
    given |= {"val": "synth-0000", "checkpoint": tmp_path / "detector.safetensors", "results": tmp_path / "again.json"}
    given |= {"summary": tmp_path / "scores.json", "workers": 1, "threads": 1}
    options = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *options, "--cameras", *data.of.cameras])
    assert training.evaluate.main() == 0
    assert f"mAP {expected['mean_ap']:.4f}" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    for reference, by_range in expected["depth"].items():
        for name, figures in by_range.items():
            assert scores["depth"][reference][name] == pytest.approx(figures, rel=1e-5)
    assert scores["nds"] == pytest.approx(expected["nds"], abs=1e-6) and len(scores["checkpoint"]) == 64
    sys.argv[sys.argv.index("--checkpoint") + 1] = str(tmp_path / "none.safetensors")
    assert training.evaluate.main() == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "none.safetensors: no such checkpoint" in error


def test_depth_scores_are_hand_worked():
    """Two cells of 16 x 16: the middle depths are 10 and 30 m; 12 and 30 m were predicted."""
    reference = torch.zeros(1, 16, 32)
    reference[0, 3, :5] = torch.tensor([10.0, 10, 10, 40, 2])
    reference[0, 8, 20] = 30.0
    scores = DepthScores()
    scores.add(torch.tensor([[[12.0, 30.0]]]), reference)
    scores.add(torch.tensor([[[40.0]]]), torch.full((1, 16, 16), 61.0))  # beyond what bins reach
    figures = scores.by_range()
    assert figures["0-60 m"]["cells"] == 2 and figures["0-60 m"]["abs_rel"] == pytest.approx(0.1)
    assert figures["0-60 m"]["rmse_m"] == pytest.approx(2**0.5) and figures["0-60 m"]["delta_125"] == 1
    assert figures["0-10 m"]["abs_rel"] == pytest.approx(0.2) and figures["20-30 m"]["rmse_m"] == 0


def test_a_difference_needs_an_interval_without_zero():
    assert interval([3.0]) == (3.0, float("inf"))
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # Student's t of two degrees of freedom
    figures = {"lidar": {"mAP": [0.1, 0.5, 0.3]}, "completed": {"mAP": [0.2, 0.61, 0.39]}}
    mean, half = differences(figures, "lidar")["completed"]["mAP"]  # each seed with its own partner: 0.1, 0.11, 0.09
    assert mean == pytest.approx(0.1) and half == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)


def test_a_comparison_prints_one_table_and_goes_on(arguments, capsys):
    options = CompareArguments(
        replace(arguments, steps=1, score=True), sources=("lidar", "accumulated"), seeds=2, demo=True
    )
    summary = compare(options)
    out = options.train.out
    assert (out / "comparison.png").stat().st_size > 5000 and json.loads((out / "comparison.json").read_text())["demo"]
    assert {len(values) for own in summary["figures"].values() for values in own.values()} == {2}
    told = capsys.readouterr().out
    assert "DEMO" in told and "4 of 4: " in told and "accumulated - lidar: " in told
    assert "step 1/1" in (out / "lidar-1" / "log.txt").read_text()
    states = {path: path.stat().st_mtime_ns for path in out.glob("*/detector.safetensors")}
    assert len(states) == 4 and compare(options)["figures"] == summary["figures"]
    assert states == {path: path.stat().st_mtime_ns for path in states}  # nothing was trained again
    with pytest.raises(InputError, match="lidar-0: was trained with another lr; choose another --out"):
        compare(replace(options, train=replace(options.train, lr=1e-3)))
    weights_seen = {source: json.loads((out / f"{source}-0" / "config.json").read_text()) for source in options.sources}
    assert len({config["cells_per_sample"] for config in weights_seen.values()}) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--ref", "nosuch"), "nosuch"),
        (("--depth-source", "completed"), "completed"),
        (("--train", "nosuch"), "nosuch"),
        (("--val", "nosuch"), "nosuch"),
        (("--batch", "0"), "--batch 0: must be at least 1"),
        (("--ema", "1"), "--ema 1.0: must be below 1"),
        (("--lr", "nan"), "--lr nan: must be at least 0"),
        (("--version", "v1.0-other"), "v1.0-other"),
        (("--cameras", "CAM_FRONT_LEFT"), "CAM_FRONT_LEFT"),
    ],
)
def test_bad_input_is_one_line(arguments, options, told, monkeypatch, capsys):
    data = arguments.data
    usual = {
        "--dataset": data.of.dataset,
        "--dataroot": str(data.of.dataroot),
        "--version": data.of.version,
        "--depth-source": data.depth_source,
        "--store": data.store,
        "--train": "synth-0000",
        "--val": "synth-0000",
        "--cameras": "CAM_FRONT",
        "--out": str(arguments.out),
        "--size": "tiny",
    }
    usual |= dict([options])
    monkeypatch.setattr(sys, "argv", ["train.py", *(part for pair in usual.items() for part in pair)])
    assert main() == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and told in error, error


@pytest.mark.parametrize(
    ("options", "told"),
    [({"seeds": 0}, "--seeds 0"), ({"sources": ("lidar",)}, "--sources lidar"), ({"jobs": 0}, "--jobs 0")],
)
def test_a_comparison_needs_something_to_compare(arguments, options, told):
    with pytest.raises(InputError, match=told):
        compare(replace(CompareArguments(arguments), **options))


def test_what_goes_wrong_in_a_run_is_one_line(arguments, monkeypatch, capsys):
    """It comes from another process."""
    monkeypatch.setattr(
        training.compare.tyro,
        "cli",
        lambda _: CompareArguments(replace(arguments, lr=1e30, clip=1e30, steps=9), seeds=1),
    )
    monkeypatch.setattr(training.compare, "sparsest", lambda _: 100.0)
    assert training.compare.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("compare: ") and len(error.splitlines()) == 1 and "the loss is not finite" in error, error


def test_a_checkpoint_of_something_else_is_refused(arguments, tmp_path):
    config = SIZES["tiny"]
    detector = Detector(config)
    save_detector(tmp_path / "a.safetensors", detector, {})
    assert load_detector(tmp_path / "a.safetensors")[0].config == config
    detector.config = replace(config, model=replace(config.model, context=8))  # not what its weights are of
    save_detector(tmp_path / "b.safetensors", detector, {})
    write_checkpoint(tmp_path / "c.safetensors", {}, "dense-depth completion 1")
    (tmp_path / "d.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:10_000])
    for name, told in (
        ("b", "another architecture"),
        ("c", "not a checkpoint of the detector"),
        ("d", "damaged"),
        ("e", "no such"),
    ):
        with pytest.raises(InputError, match=rf"{name}\.safetensors: .*{told}") as error:
            load_detector(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value)


GRADIENTS = """
import sys, torch
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from dataclasses import replace
from dense_depth.datasets import DatasetConfig, open_dataset
from training.detection.data import DataConfig, DetectionData, collate
from training.models.detector import Detector
from training.models.sizes import SIZES
from training.loop import join
_, rank, n_ranks = join("cpu", 1)
torch.manual_seed(0)
detector = Detector(SIZES["tiny"]).eval()  # batch norms with fixed statistics: they see their own process alone
of = DatasetConfig("nuscenes", Path(sys.argv[1]), "v1.0-synth", ("CAM_FRONT",))
data = DataConfig(of, "accumulated", sys.argv[2], past=0, augmentation=SIZES["tiny"].image)
frames = DetectionData(data, open_dataset(of).scenes(("synth-0000",)), augment=False)
batch = collate([frames[i, i] for i in range(rank, 2, n_ranks)])
model = DistributedDataParallel(detector) if n_ranks > 1 else detector
detector.losses(model(batch.images, batch.cameras), batch, True)["loss"].backward()
if rank == 0:
    torch.save({name: p.grad for name, p in detector.named_parameters() if p.grad is not None}, sys.argv[3])
"""


def test_two_processes_learn_as_one_does(arguments, tmp_path):
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    gradients = []
    for n in (1, 2):
        out = tmp_path / f"{n}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
        command += [
            str(tmp_path / "gradients.py"),
            str(arguments.data.of.dataroot),
            str(arguments.data.store),
            str(out),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])
        assert done.returncode == 0, done.stderr[-2000:]
        gradients.append(torch.load(out, weights_only=True))
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(grad.abs().max()) for grad in gradients[0].values())
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-3, atol=1e-4 * largest)


def test_overfits_a_keyframe(arguments):
    """A cheap form of the overfit on two keyframes in benchmarks/overfit.py: the loss falls to a fraction."""
    data = replace(arguments.data, past=0, augmentation=SIZES["tiny"].image)
    batch = collate([DetectionData(data, scenes_of(data), augment=False)[1, 0]])
    torch.manual_seed(0)
    detector = Detector(SIZES["tiny"]).train()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        terms = detector.losses(detector(batch.images, batch.cameras), batch, True)
        optimiser.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimiser.step()
        losses.append(float(terms["loss"].detach()))
    assert losses[-1] < 0.2 * losses[0] and np.isfinite(losses).all()
