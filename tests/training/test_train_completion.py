"""Training of the completion network: killed and resumed, on two processes, its calibration, and on bad input."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pipelines.runner as runner
import training.train_completion as trainer
from dense_depth import InputError
from dense_depth.completion.network import SIZES, CompletionNetwork, NetworkConfig, Prediction
from dense_depth.completion.predict import Calibration, load_checkpoint, open_completer, save_checkpoint
from dense_depth.datasets import DatasetConfig
from dense_depth.label import Label
from pipelines.accumulate import Arguments as Accumulate
from pipelines.accumulate import plan
from training.completion.data import CompletionData, Data
from training.completion.hide import HideConfig, Sample
from training.completion.loss import LossConfig, completion_loss
from training.completion.view import ViewConfig
from training.loop import Draws, warm_cosine
from training.train_completion import Arguments, calibrate, main, train, validate

SCRIPT = Path(trainer.__file__)


@pytest.fixture(scope="module")
def data(generated, tmp_path_factory):
    """The text of --data: labels at half the size, of the generated dataset."""
    store = tmp_path_factory.mktemp("training") / "store"
    job, _ = plan(Accumulate(DatasetConfig("nuscenes", generated, "v1.0-synth"), str(store), workers=0, scale=0.5))
    runner.run(job, workers=0)
    return f"dataset=nuscenes,dataroot={generated},version=v1.0-synth,store={store}"


@pytest.fixture
def arguments(data, tmp_path):
    return Arguments(
        (data,), tmp_path / "out", steps=4, batch=2, view=ViewConfig(64, 96), workers=0, threads=1, device="cpu"
    )


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def losses(monkeypatch):
    """The losses of every step; ``stop`` says after how many Control-C is pressed."""

    class Losses(list):
        stop = None

    seen = Losses()

    def recorded(*args):
        if len(seen) == seen.stop:
            raise KeyboardInterrupt
        terms = completion_loss(*args)
        seen.append(terms["loss"].item())
        return terms

    monkeypatch.setattr(trainer, "completion_loss", recorded)
    return seen


def state_of(out):
    return torch.load(out / "state.pt", weights_only=True)


def tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    children = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [x for child in children for x in tensors(child)]


def random_checkpoint(path, config=SIZES["small"]):
    torch.manual_seed(1)
    network = CompletionNetwork(config)
    torch.nn.init.normal_(network.head.weight, std=0.02)
    save_checkpoint(path, network, Calibration(), {}, half=False)
    return path


def test_a_run_ends_in_a_checkpoint_that_completes_labels(arguments, data, capsys):
    train(replace(arguments, validate=(data + ",truth=yes",), validate_frames=3))
    printed = capsys.readouterr().out
    assert "36 frames, 0.67 M parameters, step 0 of 4 on 1 x cpu" in printed
    assert re.search(r"step 4/4, loss \d.*\nvalidation at step 4: mae_m \d", printed)
    path = arguments.out / "completion.safetensors"
    network, calibration = load_checkpoint(path)
    assert len(calibration.score) >= 3 and np.all(np.diff(calibration.share) >= 0)
    averaged = state_of(arguments.out)["parts"][1]
    for name, x in network.state_dict().items():
        y = averaged[f"module.{name}"]
        torch.testing.assert_close(x.float(), y.half().float(), rtol=0, atol=0)
    label = Label.from_maps(
        *(np.full((64, 96), 9, np.float32), np.ones((64, 96), np.uint8)),
        K=np.eye(3),
        sample_token="s",
        camera="c",
        timestamp_us=0,
    )
    depth_m, _ = open_completer("network", path).complete(np.zeros((64, 96, 3), np.uint8), label)
    assert np.median(depth_m) == pytest.approx(9, rel=0.2)
    config = json.loads((arguments.out / "config.json").read_text())
    assert config["data"] == [data] and config["view"]["height"] == 64
    assert list((arguments.out / "tensorboard").iterdir())


def test_killed_and_resumed_is_as_if_nothing_had_happened(arguments, losses, tmp_path):
    arguments = replace(arguments, validate_every=2)
    train(arguments)
    whole = losses.copy()
    losses.clear()
    losses.stop = 3
    again = replace(arguments, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(again)
    assert state_of(again.out)["step"] == 2 and losses == whole[:3]
    losses.clear()
    losses.stop = None
    train(replace(again, validate_frames=5, validate_every=3))  # options that change nothing
    np.testing.assert_allclose(losses, whole[2:], rtol=1e-5)
    once, twice = (tensors(state_of(out)["parts"]) for out in (arguments.out, again.out))
    assert len(once) == len(twice) > 300
    for x, y in zip(once, twice):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    moved = load_file(arguments.out / "completion.safetensors")["head.weight"]
    assert moved.any()
    train(again)  # nothing is left to do
    assert len(losses) == 2


def test_a_kill_before_the_last_checkpoint_is_made_up_for(arguments, monkeypatch):
    """Steps are saved with their checkpoint, or not at all."""

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(arguments)
    train(arguments)
    load_checkpoint(arguments.out / "completion.safetensors")


def test_printed_figures_are_means_since_the_last_ones(arguments, losses, capsys):
    arguments = replace(arguments, steps=52, batch=1, view=ViewConfig(32, 64), validate_every=26)
    losses.stop = 26
    with pytest.raises(KeyboardInterrupt):
        train(arguments)
    losses.stop = None
    train(arguments)
    printed = re.findall(r"step (\d+)/52, loss (-?[\d.]+)", capsys.readouterr().out)
    assert [step for step, _ in printed] == ["50", "52"]
    for (_, value), part in zip(printed, (losses[26:50], losses[50:52])):
        assert float(value) == pytest.approx(np.mean(part), abs=6e-4)


@pytest.mark.parametrize("ema, kept", [(0.1, 0.1), (0.999, 2 / 11)])  # fewer of the first weights are kept
def test_averaged_weights_learning_rate_and_first_weights(arguments, tmp_path, ema, kept):
    initial = random_checkpoint(tmp_path / "initial.safetensors")
    common = replace(arguments, init=str(initial), ema=ema, lr=8e-3, warmup=4)
    networks = [load_checkpoint(initial)[0].state_dict()]
    for steps in (1, 2):
        train(replace(common, out=tmp_path / str(steps), steps=steps))
        network, averaged, *_, schedule = state_of(tmp_path / str(steps))["parts"]
        networks.append(network)
        assert schedule["_last_lr"][0] == pytest.approx(8e-3 * (steps + 1) / 4)
    for name in ("head.weight", "down.1.0.0.weight", "down.0.0.1.running_mean"):
        expected = kept * networks[1][name] + (1 - kept) * networks[2][name]
        torch.testing.assert_close(averaged[f"module.{name}"], expected)
    # The first step of Adam goes as far as the learning rate, wherever there is a gradient.
    step = (networks[1]["head.weight"] - networks[0]["head.weight"]).abs()
    assert step.median().item() == pytest.approx(2e-3, rel=0.02)
    cosine = [warm_cosine(step, warmup=200, steps=1000) for step in (199, 200, 600, 1000)]
    np.testing.assert_allclose(cosine, [1, 1, 0.5, 0], atol=1e-12)


def test_other_options_or_a_damaged_state_do_not_resume(arguments):
    def refused(text, **changes):
        with pytest.raises(InputError, match=text) as error:
            train(replace(arguments, **changes))
        assert "\n" not in str(error.value) and str(arguments.out / "state.pt") in str(error.value)

    arguments = replace(arguments, steps=1)
    train(arguments)
    refused("another lr; choose another --out", lr=1e-3)
    refused("another weight_decay", weight_decay=0.5)
    refused("another data", data=(*arguments.data, *arguments.data))
    refused("another view.width", view=ViewConfig(64, 128))
    path = arguments.out / "state.pt"
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    refused("damaged: .*; delete it to start anew")

    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a file was unpickled",)

    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    refused("damaged")


def run_main(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["train_completion.py", *map(str, options)])
    try:
        status = main()
    except SystemExit as error:
        status = error.code
    return status, capsys.readouterr().err


def test_wrong_options_are_one_line(data, tmp_path, monkeypatch, capsys):
    other = random_checkpoint(tmp_path / "other.safetensors", NetworkConfig((8, 16), (1, 1), 1))
    common = ["--out", tmp_path / "out", "--height", 64, "--width", 96, "--workers", 0, "--steps", 1, "--threads", 1]
    for options, text in [
        (["--data", data, "--batch", 0], "--batch 0: must be at least 1"),
        (["--data", data, "--validate-every", 0], "--validate-every 0: must be at least 1"),
        (["--data", "dataset=nuscenes"], "--data dataset=nuscenes: needs dataroot=..."),
        (["--data", data + ",ref=nothing"], "nothing"),
        (["--data", data, "--init", tmp_path / "none.safetensors"], "none.safetensors: no such checkpoint"),
        (["--data", data, "--init", other], "other.safetensors: another size of network than --size small"),
    ]:
        status, err = run_main(monkeypatch, capsys, *common, *options)
        assert status == 2 and err.startswith("train_completion: ") and text in err and err.count("\n") == 1, err
    status, err = run_main(monkeypatch, capsys, *common, "--data", data, "--nonsense", 3)
    assert status == 2 and "--nonsense" in err and "Traceback" not in err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line(generated, data, tmp_path, monkeypatch, capsys, workers):
    for name in ("maps", "sweeps", "v1.0-synth"):
        (tmp_path / name).symlink_to(generated / name)
    shutil.copytree(generated / "samples", tmp_path / "samples")
    for path in (tmp_path / "samples").rglob("*.jpg"):
        os.truncate(path, 2000)
    status, err = run_main(
        monkeypatch,
        capsys,
        *("--data", data.replace(str(generated), str(tmp_path)), "--out", tmp_path / "out", "--steps", 1),
        *("--height", 64, "--width", 96, "--batch", 2, "--workers", workers, "--threads", 1),
    )
    assert status == 2
    assert re.fullmatch(rf"train_completion: {tmp_path}\S+\.jpg: cannot be read as an image: .*; restore .*\n", err), (
        err
    )


def test_two_processes_average_the_gradients_of_their_halves(data, tmp_path):
    """Batch norm and the means of the loss are those of each process, so one process with both halves is no reference.

    Adam's first moment after one step is a tenth of the gradient.
    """
    initial = random_checkpoint(tmp_path / "initial.safetensors")
    common = ["--data", data, "--steps", 1, "--height", 64, "--width", 96, "--workers", 0, "--threads", 1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, SCRIPT, *common]
    command += [
        "--out",
        tmp_path / "out",
        "--batch",
        4,
        "--no-bf16",
        "--init",
        initial,
        "--clip",
        1e9,
        "--device",
        "cpu",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout
    optimiser = state_of(tmp_path / "out")["parts"][2]

    frames = CompletionData([Data.parse(data, "--data")], ViewConfig(64, 96), HideConfig(), 0)
    gradients = []
    for rank in range(2):
        network = load_checkpoint(initial)[0].train()
        samples = [frames[index] for index in islice(Draws(len(frames), 0, 0, rank, 2), 2)]
        batch = Sample(*map(torch.stack, zip(*samples)))
        completion_loss(network(*batch[:4]), batch, LossConfig())["loss"].backward()
        gradients.append([x.grad for x in network.parameters()])
    for i, (a, b) in enumerate(zip(*gradients)):
        moment = optimiser["state"][i]["exp_avg"]
        expected = 0.1 * (a + b) / 2
        assert (moment - expected).norm() <= 1e-3 * expected.norm() + 1e-9
        assert (a - b).norm() > 0.05 * expected.norm()  # either half alone would not pass


def test_calibration_gives_the_known_shares():
    """Scores in 24 groups of 100, of each a known share within half a metre."""
    shares, groups = np.linspace(0.1, 0.9, 24).round(2), np.arange(24)
    score = (np.repeat(groups, 100) + np.tile(np.linspace(0.4, 0.6, 100), 24)) / 24
    error_m = np.concatenate([np.where(np.arange(100) < round(100 * share), 0.5, 0.6) for share in shares])
    order = np.random.default_rng(0).permutation(len(score))
    calibration = calibrate(score[order], error_m[order])
    np.testing.assert_allclose(np.interp((groups + 0.5) / 24, *calibration), shares, atol=1e-4)
    assert np.interp([0, 1], *calibration).tolist() == [0, 1]


def test_shares_that_fall_are_pooled():
    """0.9, 0.6 and 0.3 become their mean at the mean of their scores, in whatever order they are joined."""
    shares = np.concatenate([[0.1, 0.9, 0.6, 0.3], np.repeat([0.7, 0.8], 10)])
    score = (np.repeat(np.arange(24), 10) + 0.5) / 24
    error_m = np.concatenate([np.where(np.arange(10) < round(10 * share), 0, 1) for share in shares])
    calibration = calibrate(score, error_m)
    assert calibration.share[:4] == pytest.approx((0, 0.1, 0.6, 0.7))
    assert calibration.score[:4] == pytest.approx((0, 0.5 / 24, 2.5 / 24, 4.5 / 24), abs=1e-6)
    assert np.all(np.diff(calibration.share) >= 0) and np.all(np.diff(calibration.score) > 0)


def test_calibration_of_few_or_equal_scores():
    rng = np.random.default_rng(0)
    for score in (rng.random(5), np.full(1000, 0.3), rng.integers(0, 3, 1000) / 3):
        calibration = calibrate(score.astype(np.float32), rng.random(len(score)))
        assert np.all(np.diff(calibration.score) >= 0) and np.all(np.diff(calibration.share) >= 0)
        assert np.isfinite(np.interp([0.0, 0.3, 1.0], *calibration)).all()


class Constant(torch.nn.Module):
    """Says 20 m everywhere."""

    def forward(self, image, depth_m, source, age):
        return Prediction(torch.full_like(depth_m, 20), torch.zeros_like(depth_m), torch.full_like(depth_m, -9))


def test_validation_judges_hidden_pixels(arguments, data):
    arguments = replace(arguments, validate=(data + ",truth=yes",), validate_frames=4, seed=2)
    calibration, figures = validate(Constant(), arguments, torch.device("cpu"), None, 1)
    view = ViewConfig(64, 96, colour=0, flip=0)
    frames = CompletionData([Data.parse(arguments.validate[0], "")], view, HideConfig(), seed=1_000_002)
    errors = []
    for i, frame in enumerate((0, 11, 23, 35)):
        sample = frames[frame, i]
        hidden = (sample.target_m > 0) & (sample.depth_m == 0)
        errors.append((sample.target_m[hidden] - 20).abs().double())
    error = torch.cat(errors)
    assert figures["mae_m"] == pytest.approx(error.mean().item(), rel=1e-4)
    assert figures["rmse_m"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-4)
    assert figures["within"] == pytest.approx((error <= 0.5).double().mean().item(), rel=1e-4)
    score = (1 - np.exp(-0.5)) / (1 + np.exp(-9))  # of every pixel: shares of its bins are pooled or equal
    assert calibration.score[1] == pytest.approx(score, abs=1e-5)


def test_validation_without_hidden_pixels_leaves_confidence_as_it_is(arguments, data, capsys):
    nothing = HideConfig(modes=(1, 0, 0, 0), region=0, thin=0)
    arguments = replace(arguments, validate=(data,), validate_frames=2, hide=nothing)
    assert validate(Constant(), arguments, torch.device("cpu"), None, 1) == (Calibration(), {})
    assert "no hidden pixels" in capsys.readouterr().out
