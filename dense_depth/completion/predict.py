"""One face for every way to complete a label, and the file that a trained network is kept in."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dense_depth import InputError
from dense_depth.checkpoint import read_checkpoint, write_checkpoint
from dense_depth.completion.classical import distance_confidence, ip_basic
from dense_depth.completion.network import CompletionNetwork, NetworkConfig, Prediction
from dense_depth.label import OUTLIER_M, Label

Method = Literal["network", "ip-basic"]
SHIPPED = Path(__file__).parent / "city.safetensors"  # trained on the generated city
FORMAT = "dense-depth completion 1"
ALGORITHMS: dict[Method, int] = {"network": 2, "ip-basic": 2}  # raised when a method's output for an input changes


class Completion(NamedTuple):
    """Depth and confidence of every pixel of an image."""

    depth_m: Float32[np.ndarray, "height width"]  # z in metres; 0 where there is no surface, such as sky
    confidence: UInt8[np.ndarray, "height width"]  # 255 x the chance that the depth is off by at most label.OUTLIER_M


class Completer(NamedTuple):
    """A way to complete labels.

    Attributes:
        identity: What determines its output apart from the input, as JSON values: method, its ``ALGORITHMS`` number,
            sha256 of the checkpoint.
        complete: Called with an RGB image and a label of the same size.
    """

    identity: dict[str, str | int]
    complete: Callable[[UInt8[np.ndarray, "height width 3"], Label], Completion]


class Calibration(NamedTuple):
    """How often depths with a score are within ``OUTLIER_M``: increasing scores, and shares that do not fall."""

    score: tuple[float, ...] = (0.0, 1.0)
    share: tuple[float, ...] = (0.0, 1.0)


def open_completer(method: Method, checkpoint: Path | None = None, device: str = "cpu") -> Completer:
    """Opens a method; of the network the checkpoint that comes with the program, if none is given.

    Raises:
        InputError: The method is unknown, or the checkpoint is missing, damaged, or of another architecture.
    """
    if method == "network":
        path = checkpoint or SHIPPED
        network, calibration = load_checkpoint(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        identity: dict[str, str | int] = {"method": "network", "algorithm": ALGORITHMS[method], "checkpoint": sha256}
        return Completer(identity, _NetworkCompleter(network, calibration, device))
    if method == "ip-basic":
        if checkpoint:
            raise InputError(f"--checkpoint {checkpoint}: --method ip-basic has none")
        return Completer({"method": "ip-basic", "algorithm": ALGORITHMS[method]}, _ip_basic)
    raise InputError(f"--method {method}: not known; use {' or '.join(get_args(Method))}")


def _ip_basic(image: UInt8[np.ndarray, "height width 3"], label: Label) -> Completion:
    depth_m = ip_basic(label.depth_m)
    return Completion(depth_m, np.where(depth_m > 0, distance_confidence(label.depth_m), 0).astype(np.uint8))


class _NetworkCompleter:
    def __init__(self, network: CompletionNetwork, calibration: Calibration, device: str):
        self._network = for_inference(network, device)
        self._calibration, self._device = calibration, device

    def __call__(self, image: UInt8[np.ndarray, "height width 3"], label: Label) -> Completion:
        if image.shape[:2] != label.depth_m.shape:
            raise ValueError(f"an image of {image.shape[:2]} pixels and a label of {label.depth_m.shape}")
        maps = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in (label.depth_m, label.source, label.age))
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            depth_m, source, age_t = (x.to(self._device).float() for x in maps)
            prediction = self._network(pixels.to(self._device).float() / 255, depth_m, source, age_t)
            score = confidence_score(prediction)[0].cpu().numpy()
            surface = (prediction.sky[0] < 0).cpu().numpy()
            completed_m = prediction.depth_m[0].cpu().numpy()
        confidence = np.interp(score, *self._calibration) * surface
        return Completion(completed_m * surface, np.round(255 * confidence).astype(np.uint8))


def confidence_score(prediction: Prediction) -> Float[Tensor, "b h w"]:
    """The network's own guess of the chance that a depth is within ``OUTLIER_M``, before calibration."""
    within = -torch.expm1(-OUTLIER_M / prediction.log_scale.exp())  # of a Laplace distribution
    return within * torch.sigmoid(-prediction.sky)


def for_inference(network: CompletionNetwork, device: str) -> CompletionNetwork:
    """The same function, faster: batch norms folded into their convolutions, channels last; changes the network."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            conv = module[0]
            assert isinstance(conv, nn.Conv2d)
            module[0], module[1] = fuse_conv_bn_eval(conv, module[1]), nn.Identity()
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cpu":  # reordering ten channels of the whole image takes longer than convolving them
        stem = network.down[0][0][0]  # type: ignore[index]
        stem.weight.data = stem.weight.data.contiguous()
    return network


def save_checkpoint(
    path: Path, network: CompletionNetwork, calibration: Calibration, trained: dict[str, Any], half: bool = True
) -> None:
    """Writes weights, sizes, calibration and how the network was trained as safetensors.

    Args:
        path: The file.
        network: The network.
        calibration: Of its confidence.
        trained: How it was trained, as JSON values.
        half: Keep floats as float16, half the size.
    """
    state = {
        name: (x.half() if half and x.is_floating_point() else x).contiguous()
        for name, x in network.state_dict().items()
    }
    sizes = dataclasses.asdict(network.config)
    write_checkpoint(path, state, FORMAT, network=sizes, calibration=calibration._asdict(), trained=trained)


def load_checkpoint(path: Path) -> tuple[CompletionNetwork, Calibration]:
    """Reads what ``save_checkpoint`` wrote.

    Raises:
        InputError: The file is missing, damaged, or holds another network.
    """
    hint = "train one with training/train_completion.py, or use ip-basic"
    with read_checkpoint(path, FORMAT, "the completion network", hint) as (state, metadata):
        sizes: dict[str, Any] = json.loads(metadata["network"])
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()
        }
        network = CompletionNetwork(NetworkConfig(**lists))
        network.load_state_dict({name: x.float() for name, x in state.items()})
        calibration = Calibration(**json.loads(metadata["calibration"]))
        np.interp(0.0, *calibration)  # refuses tables of different lengths
    return network, calibration
