"""Completers: what a checkpoint keeps, that folding changes nothing, confidence, and files that are no checkpoint."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812

from dense_depth import InputError
from dense_depth.completion.classical import ip_basic
from dense_depth.completion.network import CompletionNetwork, NetworkConfig
from dense_depth.completion.predict import (
    ALGORITHMS,
    FORMAT,
    Calibration,
    confidence_score,
    for_inference,
    load_checkpoint,
    open_completer,
    save_checkpoint,
)
from dense_depth.label import OUTLIER_M, Label

HEIGHT, WIDTH = 60, 92
CALIBRATION = Calibration((0.1, 0.25, 0.8), (0.2, 0.3, 0.9))


def scene(seed=0, density=0.1):
    """An RGB image and a label of a slope."""
    rng = np.random.default_rng(seed)
    depth_m = 4 + np.indices((HEIGHT, WIDTH))[0][::-1] * 0.5
    measured = rng.random((HEIGHT, WIDTH)) < density
    image = np.clip(rng.normal(4 * depth_m[..., None], 5, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
    source, age = (rng.integers(1, n, (HEIGHT, WIDTH)) * measured for n in (4, 10))
    label = Label.from_maps(
        np.float32(depth_m * measured),
        source.astype(np.uint8),
        age.astype(np.uint8),
        K=np.eye(3),
        sample_token="sample",
        camera="CAM_FRONT",
        timestamp_us=0,
    )
    return image, label


def tensors(image, label):
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return pixels, *(torch.from_numpy(x)[None].float() for x in (label.depth_m, label.source, label.age))


@pytest.fixture(scope="module")
def trained():
    """A few steps on two images: statistics of the batch norms and the head are not trivial."""
    torch.manual_seed(0)
    network = CompletionNetwork()
    torch.nn.init.normal_(network.head.weight, std=0.02)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for seed in range(4):
        prediction = network(*tensors(*scene(seed)))
        optimiser.zero_grad()
        (
            (prediction.depth_m - 20).abs().mean() + prediction.sky.mean() + prediction.log_scale.square().mean()
        ).backward()
        optimiser.step()
    means = [x.running_mean for x in network.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    assert all(x.abs().max() > 1e-3 for x in means)
    network.eval()
    with torch.no_grad():  # half of a picture is sky, and errors are stated to be 1 m in the middle
        network.head.weight[-20:] *= 5
        prediction = network(*tensors(*scene(3)))
        network.head.bias[-20:-4] -= prediction.log_scale.median()
        network.head.bias[-4:] -= prediction.sky.median()
    return network


@pytest.fixture
def checkpoint(trained, tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, trained, CALIBRATION, {"steps": 4})
    return path


@pytest.mark.parametrize("half", [True, False])
def test_a_checkpoint_keeps_the_network(trained, tmp_path, half):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, trained, CALIBRATION, {"steps": 4}, half)
    network, calibration = load_checkpoint(path)
    assert network.config == trained.config
    assert calibration == Calibration(list(CALIBRATION.score), list(CALIBRATION.share))
    for name, x in load_file(path).items():
        expected = trained.state_dict()[name].numpy()
        if half and expected.dtype == np.float32:
            assert x.dtype == np.float16
            expected = expected.astype(np.float16)
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_array_equal(network.state_dict()[name].numpy(), expected.astype(np.float32))
    n_values = sum(x.numel() for x in trained.state_dict().values())
    assert path.stat().st_size == pytest.approx(n_values * (2 if half else 4), rel=0.02)


def test_folded_batch_norms_change_nothing(trained, checkpoint):
    network, _ = load_checkpoint(checkpoint)
    network.eval()
    sample = tensors(*scene(7))
    with torch.inference_mode():
        plain = network(*sample)
        folded = for_inference(network, "cpu")
        assert not any(isinstance(x, torch.nn.BatchNorm2d) for x in folded.modules())
        for x, y in zip(plain, folded(*sample)):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_the_score_is_the_chance_of_a_laplace_distribution_and_of_no_sky():
    from scipy.stats import laplace

    torch.manual_seed(0)
    depth_m, log_scale, sky = torch.rand(3, 1, 5, 6) * 6 - 3
    score = confidence_score(type(CompletionNetwork()(*tensors(*scene())))(depth_m, log_scale, sky))
    distribution = laplace(scale=np.exp(log_scale.double().numpy()))
    within = distribution.cdf(OUTLIER_M) - distribution.cdf(-OUTLIER_M)
    np.testing.assert_allclose(score, within / (1 + np.exp(sky.numpy())), rtol=1e-5)


def test_confidence_follows_the_table_and_sky_has_none(checkpoint):
    image, label = scene(3)
    completer = open_completer("network", checkpoint)
    depth_m, confidence = completer.complete(image, label)
    assert depth_m.shape == confidence.shape == (HEIGHT, WIDTH)
    assert depth_m.dtype == np.float32 and confidence.dtype == np.uint8

    network = load_checkpoint(checkpoint)[0].eval()
    with torch.inference_mode():
        prediction = network(*tensors(image, label))
    surface = prediction.sky[0].numpy() < 0
    assert 0.05 < surface.mean() < 0.95
    assert not depth_m[~surface].any() and not confidence[~surface].any()
    np.testing.assert_allclose(depth_m[surface], prediction.depth_m[0].numpy()[surface], rtol=1e-4)
    score = confidence_score(prediction)[0].numpy()[surface]
    below, above = score < 0.25, score >= 0.25
    expected = np.empty_like(score)
    expected[below] = 0.2 + (np.maximum(score[below], 0.1) - 0.1) / 0.15 * 0.1  # worked out by hand from CALIBRATION
    expected[above] = 0.3 + (np.minimum(score[above], 0.8) - 0.25) / 0.55 * 0.6
    assert below.any() and above.any()
    np.testing.assert_allclose(confidence[surface], 255 * expected, atol=0.6)


def test_a_label_without_ages_is_one_of_age_zero_and_views_of_arrays_will_do(checkpoint):
    image, label = scene(3)
    complete = open_completer("network", checkpoint).complete
    ages = np.zeros_like(label.points().age)
    fresh = dataclasses.replace(label, labelled=label.points()._replace(age=ages))
    of_frame = {"K": label.K, "sample_token": "sample", "camera": "CAM_FRONT", "timestamp_us": 0}
    without = complete(image, Label.from_maps(label.depth_m, label.source, **of_frame))
    assert all(np.array_equal(x, y) for x, y in zip(without, complete(image, fresh)))
    again = complete(image[..., ::-1].copy()[..., ::-1], label)
    assert all(np.array_equal(x, y) for x, y in zip(complete(image, label), again))
    with pytest.raises(ValueError, match="pixels and a label of"):
        complete(image[1:], label)


def test_identity_is_that_of_the_file(trained, checkpoint, tmp_path):
    import hashlib

    identity = open_completer("network", checkpoint).identity
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert identity == {"method": "network", "algorithm": ALGORITHMS["network"], "checkpoint": sha256}
    save_checkpoint(tmp_path / "y.safetensors", trained, CALIBRATION, {"steps": 5})
    assert open_completer("network", tmp_path / "y.safetensors").identity != identity


def test_ip_basic_takes_no_checkpoint(checkpoint):
    image, label = scene()
    completer = open_completer("ip-basic")
    assert completer.identity == {"method": "ip-basic", "algorithm": ALGORITHMS["ip-basic"]}
    depth_m, confidence = completer.complete(image, label)
    np.testing.assert_array_equal(depth_m, ip_basic(label.depth_m))
    assert confidence.dtype == np.uint8 and confidence[label.depth_m > 0].min() > confidence.min()
    of_frame = {"K": label.K, "sample_token": "sample", "camera": "CAM_FRONT", "timestamp_us": 0}
    nothing = Label.from_maps(np.zeros_like(label.depth_m), label.source, **of_frame)
    assert not any(x.any() for x in completer.complete(image, nothing))
    with pytest.raises(InputError, match=r"^--checkpoint .*: --method ip-basic has none$"):
        open_completer("ip-basic", checkpoint)
    with pytest.raises(InputError, match=r"^--method nearest: not known; use network or ip-basic$"):
        open_completer("nearest")  # type: ignore[arg-type]


def one_line(path):
    with pytest.raises(InputError) as error:
        open_completer("network", path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_files_that_are_no_checkpoint(checkpoint, tmp_path):
    assert "no such checkpoint" in one_line(tmp_path / "none.safetensors")
    assert "no such checkpoint" in one_line(tmp_path)
    path = tmp_path / "damaged.safetensors"
    content = checkpoint.read_bytes()
    for kept in (0, 5, 500, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        assert "damaged" in one_line(path)
    path.write_bytes(b"\x00" * 1000)
    one_line(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "damaged" in one_line(path)
    save_file({"weight": torch.zeros(3)}, path)
    assert "not a checkpoint of the completion network" in one_line(path)


class Trap:
    """Says so where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a file was unpickled",)


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    assert "damaged" in one_line(path)
    torch.save({"trap": Trap()}, path)
    assert "damaged" in one_line(path)


def rewritten(checkpoint, network=None, calibration=None, **state):
    """The checkpoint with other metadata or tensors."""
    tensors = {name: torch.from_numpy(x) for name, x in load_file(checkpoint).items()}
    metadata = {
        "format": FORMAT,
        "network": network or json.dumps(dataclasses.asdict(NetworkConfig())),
        "calibration": calibration or json.dumps(CALIBRATION._asdict()),
    }
    tensors |= state
    save_file({name: x for name, x in tensors.items() if x is not None}, checkpoint, metadata)
    return checkpoint


@pytest.mark.parametrize(
    "change",
    [
        {"network": json.dumps({"widths": [16, 32], "blocks": [1, 1], "iterations": 4})},
        {"network": json.dumps({"widths": [16, 32], "blocks": [1], "iterations": 4})},
        {"network": json.dumps({"channels": 3})},
        {"network": "[1, 2]"},
        {"network": "{"},
        {"calibration": json.dumps({"score": [0, 1]} | {"shares": [0, 1]})},
        {"calibration": json.dumps({"score": [0, 1], "share": [0, 0.5, 1]})},
        {"calibration": json.dumps({"score": [], "share": []})},
        {"head.weight": torch.zeros(3, 3)},
        {"head.weight": None},
        {"head.more": torch.zeros(3)},
    ],
    ids=str,
)
def test_another_architecture(checkpoint, change):
    assert "another architecture" in one_line(rewritten(checkpoint, **change))


def test_sizes_are_rebuilt_from_the_file(tmp_path):
    config = NetworkConfig(widths=(8, 16), blocks=(1, 0), iterations=1)
    save_checkpoint(tmp_path / "x.safetensors", CompletionNetwork(config), Calibration(), {})
    network, calibration = load_checkpoint(tmp_path / "x.safetensors")
    assert network.config == config and [list(x) for x in calibration] == [[0, 1], [0, 1]]
    assert F.mse_loss(network.head.weight, torch.zeros_like(network.head.weight)) == 0
