"""Scores a detector: nuScenes' own detection evaluation, and its depth against LiDAR and, where known, truth.

python training/evaluate.py --checkpoint runs/a/detector.safetensors --dataset nuscenes --dataroot D --version V
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import tyro
from jaxtyping import Float, UInt8
from torch import Tensor

from dense_depth.datasets import open_dataset
from dense_depth.datasets.scene import Scene
from dense_depth.datasets.truth import open_truth, truth_path
from dense_depth.label import Points, Source
from dense_depth.options import check_options
from dense_depth.quality.errors import RANGE_ENDS_M
from dense_depth.quality.pictures import colours
from training.detection.augmentation import warp_label
from training.detection.data import MEAN, STD, Batch, DataConfig, DetectionData, collate, open_version
from training.detection.scores import evaluate_detection, results_of
from training.loop import batches, join, run_command
from training.models.bevdepth import STRIDE
from training.models.checkpoint import load_detector
from training.models.detector import Detector, Output

# The first is what detectors can see: their bins end at 58 m, and truth goes on to the horizon.
RANGES = (f"0-{RANGE_ENDS_M[-1]} m", *(f"{a}-{b} m" for a, b in zip((0, *RANGE_ENDS_M), RANGE_ENDS_M)))
FIGURES = ("cells", "abs_rel", "rmse_m", "delta_125")


@dataclass(frozen=True)
class Arguments:
    """Scores a detector.

    Attributes:
        checkpoint: The file that training/train.py wrote.
        data: What to score on; its --val. With --store, depth is compared with the single sweeps (kind lidar) there.
        results: Write the nuScenes results file here.
        summary: Write the scores as JSON to this file.
        workers: Processes that read data.
        threads: Threads of torch; its own choice if not given.
        device: Where to compute; a GPU if there is one, else the CPU.
    """

    checkpoint: Path
    data: Annotated[DataConfig, tyro.conf.arg(name="")]
    results: Path
    summary: Path | None = None
    workers: int = 4
    threads: int | None = None
    device: Literal["cpu", "cuda"] | None = None


def main() -> int:
    """Entry point; returns the exit status."""
    return run_command("evaluate", lambda: evaluate(tyro.cli(Arguments)), resumes=False)


def evaluate(arguments: Arguments) -> None:
    """Scores the detector, and prints and writes what came of it.

    Raises:
        InputError: An option, the checkpoint, the dataset or the labels cannot be used.
    """
    check_options(arguments, {"workers": 0, "threads": 1}, {})
    device = join(arguments.device, arguments.threads).device
    detector, sha256 = load_detector(arguments.checkpoint)
    detector.to(device)
    scenes = [*open_dataset(arguments.data.of).scenes(arguments.data.val)]
    scores = score(detector, arguments.data, scenes, device, arguments.results, arguments.workers)
    scores = {"checkpoint": sha256, **scores}
    print_scores(scores)
    if arguments.summary:
        arguments.summary.write_text(json.dumps(scores, indent=1) + "\n")


def score(
    detector: Detector,
    data: DataConfig,
    scenes: Sequence[Scene],
    device: torch.device,
    results_file: Path,
    workers: int = 0,
) -> dict[str, Any]:
    """Detects on the keyframes of scenes and scores boxes and depth.

    Args:
        detector: In its own configuration.
        data: The dataset and its labels; the kind that it names does not matter.
        scenes: Scenes of the dataset.
        device: Where the detector is.
        results_file: Where the nuScenes results go.
        workers: Processes that read data.

    Returns:
        ``mean_ap``, ``nds``, ``errors``, ``class_ap``, ``class_boxes``, and under ``depth`` figures by reference
        ("lidar", "truth") and range.

    Raises:
        InputError: The dataset or the labels cannot be used.
    """
    config = detector.config
    data = replace(data, past=config.model.past, augmentation=config.image, max_missing=1.0)
    has_lidar = _has_lidar(data, scenes)
    frames = DetectionData(replace(data, depth_source="lidar" if has_lidar else "none"), scenes, augment=False)
    for note in frames.notes:
        print(f"note: {note}", flush=True)
    detections, poses = {}, {}
    depth: dict[str, DepthScores] = {}
    detector.eval()
    for i, batch in enumerate(batches(frames, [(i, 0) for i in range(len(frames))], 1, workers, collate)):
        batch = batch.to(device)
        with torch.inference_mode():
            output = detector(batch.images, batch.cameras)
            token = batch.sample_tokens[0]
            (detections[token],) = detector.detect(output)
            poses[token] = batch.world_SE3_ego[0]
            predicted_m = detector.expected_depth(output)[0].cpu()
        if has_lidar:
            depth.setdefault("lidar", DepthScores()).add(predicted_m, batch.depth_m[0].cpu())
        truth_m = _truth(frames, i, data)
        if truth_m is not None:
            depth.setdefault("truth", DepthScores()).add(predicted_m, truth_m)
    results_file.parent.mkdir(parents=True, exist_ok=True)
    results_file.write_text(json.dumps(results_of(detections, poses)))
    scores = asdict(evaluate_detection(scenes, results_file, poses.keys()))
    return {**scores, "depth": {name: one.by_range() for name, one in depth.items()}}


def _has_lidar(data: DataConfig, scenes: Sequence[Scene]) -> bool:
    """Whether the version has single-sweep labels of any camera frame of these scenes."""
    version = open_version(replace(data, depth_source="lidar")) if data.store else None
    frames = {(frame.sample_token, frame.camera) for scene in scenes for frame in scene.frames}
    return version is not None and any(
        (token, row["camera"]) in frames
        for row in version.rows()
        if (row["kind"], row["dataset"]) == ("lidar", data.of.dataset)
        for token in row["sample_tokens"]
    )


def _truth(frames: DetectionData, index: int, data: DataConfig) -> Float[Tensor, "n h w"] | None:
    """Exact depth in the pixels of the input; None where the dataset has none."""
    maps = []
    for frame, scene_token, input_T_recorded in frames.views(index):
        if not truth_path(data.of.dataroot, scene_token, frame.camera).is_dir():
            return None
        truth = open_truth(data.of.dataroot, scene_token, frame.camera)
        native_m = np.asarray(truth.depth_m[truth.sample_tokens.index(frame.sample_token)])
        size = data.augmentation.height, data.augmentation.width
        v, u = np.nonzero(native_m > 0)
        codes = np.full(len(u), Source.KEY_SWEEP, np.uint8), np.zeros(len(u), np.uint8)
        points = Points(u.astype(np.uint16), v.astype(np.uint16), native_m[v, u], *codes)
        maps.append(warp_label(points, input_T_recorded, *size).depth_m)
    return torch.from_numpy(np.stack(maps))


class DepthScores:
    """Expected depths against the middle one of a reference's depths in each cell, by range; to 60 m."""

    def __init__(self) -> None:
        self._sums = np.zeros((len(RANGE_ENDS_M), 4))  # cells, relative, squared, within 1.25

    def add(self, predicted_m: Float[Tensor, "n rows columns"], reference_m: Float[Tensor, "n height width"]) -> None:
        """Adds the cells of some images in which the reference has a depth; 0 = none."""
        n, rows, columns = predicted_m.shape
        pixels = reference_m.reshape(n, rows, STRIDE, columns, STRIDE).permute(0, 1, 3, 2, 4).flatten(3)
        middle = torch.where(pixels > 0, pixels, torch.nan).nanmedian(-1).values.numpy().astype(np.float64)
        known = middle <= RANGE_ENDS_M[-1]  # not where there is none: NaN
        reference, predicted = middle[known], predicted_m.numpy()[known].astype(np.float64)
        ratio = np.maximum(predicted / reference, reference / predicted)
        values = [np.ones(len(reference)), np.abs(predicted / reference - 1), (predicted - reference) ** 2]
        for i, value in enumerate([*values, (ratio < 1.25).astype(float)]):
            np.add.at(self._sums[:, i], np.searchsorted(RANGE_ENDS_M, reference), value)

    def by_range(self) -> dict[str, dict[str, float]]:
        """Figures of ``FIGURES`` by ``RANGES``; ranges without a cell are left out."""
        sums = np.vstack([self._sums.sum(0), self._sums])
        figures = {}
        for name, (cells, relative, squared, within) in zip(RANGES, sums.tolist()):
            if cells:
                values = (cells, relative / cells, (squared / cells) ** 0.5, within / cells)
                figures[name] = dict(zip(FIGURES, values))
        return figures


def print_scores(scores: Mapping[str, Any]) -> None:
    """Prints what ``score`` returned."""
    errors = ", ".join(f"{name} {value:.3f}" for name, value in scores["errors"].items())
    print(f"mAP {scores['mean_ap']:.4f}, NDS {scores['nds']:.4f}; {errors}")
    found = {name: ap for name, ap in scores["class_ap"].items() if scores["class_boxes"][name]}
    print("AP: " + ", ".join(f"{name} {ap:.3f} ({scores['class_boxes'][name]})" for name, ap in found.items()))
    for reference, by_range in scores["depth"].items():
        for name, figures in by_range.items():
            print(
                f"depth against {reference}, {name}: AbsRel {figures['abs_rel']:.4f}, RMSE {figures['rmse_m']:.3f} m, "
                f"<1.25 {100 * figures['delta_125']:.2f} % of {figures['cells']:.0f} cells"
            )


@torch.no_grad()
def draw_output(detector: Detector, output: Output, batch: Batch) -> UInt8[np.ndarray, "height width 3"]:
    """The first sample: each image above its label and its predicted depth, and all boxes from above; RGB.

    Ground truth is green; detections are red, the fainter the less they score.
    """
    columns = []
    predicted_m = detector.expected_depth(output)[0].float().cpu().numpy()
    for n in range(predicted_m.shape[0]):
        pixels = batch.images[0, 0, n].permute(1, 2, 0).float().cpu().numpy() * STD + MEAN
        image = np.clip(pixels, 0, 255).astype(np.uint8)
        label = cv2.dilate(batch.depth_m[0, n].cpu().numpy(), np.ones((3, 3), np.uint8))
        depth_m = cv2.resize(predicted_m[n], image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        columns.append(np.vstack([image, *(colours(x)[..., ::-1] for x in (label, depth_m))]))
    pictures = np.hstack(columns)
    side = pictures.shape[0]
    plan = np.zeros((side, side, 3), np.uint8)
    grid = detector.config.grid
    truth, (detected, *_) = batch.boxes[0].boxes, detector.detect(output)
    weakest_first = np.argsort(detected.scores)
    red = np.outer(np.clip(2 * detected.scores, 0, 1), (255, 0, 0))
    _draw_boxes(plan, detected.boxes.boxes[weakest_first], red[weakest_first], grid.x_m[:2])
    _draw_boxes(plan, truth, np.tile((0, 255, 0), (len(truth), 1)), grid.x_m[:2])
    return np.hstack([pictures, plan])


def _draw_boxes(
    plan: UInt8[np.ndarray, "side side 3"],
    boxes: Float[np.ndarray, "n 9"],
    colours_rgb: Float[np.ndarray, "n 3"],
    x_m: tuple[float, float],
) -> None:
    """Boxes from above, x up and y to the left."""
    px_per_m = len(plan) / (x_m[1] - x_m[0])
    for (x, y, _, length, width, _, yaw), colour in zip(boxes[:, :7], colours_rgb):
        corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * [length / 2, width / 2]
        turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        at = corners @ turn + [x, y]
        pixels = np.column_stack([x_m[1] - at[:, 1], x_m[1] - at[:, 0]]) * px_per_m
        cv2.polylines(plan, [pixels.round().astype(np.int32)], True, colour.tolist(), 1, cv2.LINE_AA)


if __name__ == "__main__":
    sys.exit(main())
