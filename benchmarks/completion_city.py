"""Depth completion against the exact depth of a generated city that nothing was trained on.

Labels of 704x396 pixels, cut to the 256 rows at the bottom, as BEVDepth does; measured pixels are kept, as the job
does. "all surfaces" are the pixels that show one, measured or not; where the network leaves a hole in a surface, it is
charged the baseline's error. The most confident pixels are those of the network; the baseline's error is given on the
same pixels and, to be hard on the network, on the 80 % that the baseline itself is most confident of.

    python benchmarks/completion_city.py [--dataroot D] [--checkpoint F] [--frames N]

Draws ten frames: image, input, baseline, network, confidence, truth.
"""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import tyro
from _recorded import pictures

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.completion.predict import Completion, open_completer
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import CameraFrame
from dense_depth.datasets.truth import read_truth
from dense_depth.images import read_image
from dense_depth.label import Label, Source, label_camera
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.quality.pictures import colours
from dense_depth.quality.truth import FrameTruth, footprints
from dense_depth.synthetic import SynthConfig, generate

SCALE, ROWS = 0.44, 256
N_PICTURES, BINS = 10, 10
GREYS = cv2.COLORMAP_VIRIDIS


def main(
    dataroot: Path | None = None,
    checkpoint: Path | None = None,
    frames: int = 96,
    window_s: float = 1.0,
) -> None:
    """Prints the errors of both methods and saves the pictures.

    Args:
        dataroot: A generated dataset (v1.0-synth); a new one of two scenes if not given.
        checkpoint: Weights of the network; those that ship if not given.
        frames: How many camera frames to look at.
        window_s: Sweeps so long before and after; 0 for the key sweep alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        if dataroot is None:
            dataroot = Path(folder)
            generate(dataroot, SynthConfig(scenes=2, keyframes=8, seed=1))
        run(dataroot, checkpoint, frames, window_s)


def run(dataroot: Path, checkpoint: Path | None, n_frames: int, window_s: float) -> None:
    """As ``main``."""
    methods = {"ip-basic": open_completer("ip-basic"), "network": open_completer("network", checkpoint)}
    config = AccumulationConfig(past_s=window_s, future_s=window_s)
    dataset = open_dataset(DatasetConfig("nuscenes", dataroot, "v1.0-synth"))
    per_scene = -(-n_frames // len(dataset.scene_names))
    errors: list[
        np.ndarray
    ] = []  # per frame: pixel by (measured, baseline's and network's confidence and error, filled)
    sky: list[tuple[int, int]] = []
    drawn = 0
    for scene in dataset.scenes():
        chosen = [scene.frames[i] for i in np.linspace(0, len(scene.frames) - 1, per_scene).astype(int)]
        cloud = SceneCloud(scene, chosen, config)
        for frame in chosen:
            image, label = read_frame(cloud, frame)
            shown = FrameTruth.read(read_truth(dataroot, scene.token, frame.camera), frame.sample_token)
            sides = (round(frame.height * SCALE), frame.height), (round(frame.width * SCALE), frame.width)
            rows, columns = (footprints(*side)[:, 2] for side in sides)
            truth_m = shown.depth_m[np.ix_(rows, columns)][-ROWS:]
            done = [keep_measured(method.complete(image, label), label) for method in methods.values()]
            errors.append(compare(label, truth_m, *done))
            sky.append((int(((truth_m == 0) & (done[1].depth_m == 0)).sum()), int((truth_m == 0).sum())))
            if len(errors) % max(n_frames // N_PICTURES, 1) == 1 and drawn < N_PICTURES:
                drawn += 1
                draw(f"{drawn:02d}", image, label, truth_m, *done)
    report(np.concatenate(errors, axis=1), np.array(sky).sum(0), window_s, len(errors))
    print(f"pictures of {drawn} frames: {pictures()}/city_*.png")


def read_frame(cloud: SceneCloud, frame: CameraFrame) -> tuple[np.ndarray, Label]:
    """Image and label, cut to the rows at the bottom."""
    height, width, K = label_camera(frame, SCALE)
    whole, _ = render_label(cloud, frame, K, VisibilityConfig(), new_keys(height, width))
    K[1, 2] -= height - ROWS
    cut = (x[-ROWS:] for x in (whole.depth_m, whole.source, whole.age))
    of_frame = {"sample_token": frame.sample_token, "camera": frame.camera, "timestamp_us": frame.timestamp_us}
    label = Label.from_maps(*cut, K=K, **of_frame)
    return read_image(frame, height, width)[-ROWS:], label


def keep_measured(completion: Completion, label: Label) -> Completion:
    """Measured pixels as they were measured, and certain."""
    measured = label.source != Source.NONE
    return Completion(
        np.where(measured, label.depth_m, completion.depth_m), np.where(measured, 255, completion.confidence)
    )


def compare(label: Label, truth_m: np.ndarray, baseline: Completion, network: Completion) -> np.ndarray:
    """The pixels that show a surface: measured, confidence and error of both, and whether the network filled it."""
    surface = truth_m > 0
    filled = network.depth_m > 0
    baseline_m = np.abs(baseline.depth_m - truth_m)
    network_m = np.where(filled, np.abs(network.depth_m - truth_m), baseline_m)
    columns = (label.depth_m > 0, baseline.confidence, baseline_m, network.confidence, network_m, filled)
    return np.stack([x[surface].astype(np.float32) for x in columns])


def report(errors: np.ndarray, sky: np.ndarray, window_s: float, n_frames: int) -> None:
    """Prints the tables."""
    measured, baseline_confidence, baseline_m, confidence, network_m, filled = errors
    completed = measured == 0
    shown = f"{n_frames} labels of 704x{ROWS}, sweeps of {window_s:g} s before and after"
    print(f"{shown}: {100 * measured.mean():.1f} % of the")
    print(f"pixels that show a surface are measured; the network fills {100 * filled.mean():.2f} % of them, and leaves")
    print(f"{100 * sky[0] / max(sky[1], 1):.2f} % of the sky empty")
    # Ties, as between measured pixels, in a fixed random order.
    jitter = np.random.default_rng(0).uniform(size=len(confidence))
    sure = rank(confidence, jitter) >= 0.2
    parts = {
        "all surfaces": (np.ones(len(measured), bool),) * 2,
        "completed pixels": (completed,) * 2,
        "most confident 80 %": (sure, sure),
        "each its most confident 80 %": (rank(baseline_confidence, jitter) >= 0.2, sure),
    }
    print(f"{'MAE / RMSE m':30}{'ip-basic':>16}{'network':>16}{'MAE, %':>10}")
    for name, (of_baseline, of_network) in parts.items():
        e0, e1 = baseline_m[of_baseline], network_m[of_network]
        cells = (f"{e.mean():.3f} /{np.sqrt((e**2).mean()):7.3f}" for e in (e0, e1))
        print(f"{name:30}" + "".join(f"{cell:>16}" for cell in cells) + f"{100 * (e1.mean() / e0.mean() - 1):>+10.1f}")
    print(f"\ncompleted pixels by confidence of the network, in {BINS} bins")
    print(f"{'stated':>10}{'pixels %':>12}{'within 0.5 m %':>18}{'MAE m':>10}")
    stated, error_m = confidence[completed] / 255, network_m[completed]
    bins = np.minimum((stated * BINS).astype(int), BINS - 1)
    means = []
    for i in range(BINS):
        at = bins == i
        means.append(float(error_m[at].mean()))
        print(
            f"{stated[at].mean():>10.3f}{100 * at.mean():>12.2f}{100 * (error_m[at] <= 0.5).mean():>18.1f}"
            f"{means[-1]:>10.3f}"
        )
    print("error falls from bin to bin" if np.all(np.diff(means) < 0) else "error does NOT fall from bin to bin")


def rank(values: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """Share of the values that are smaller; ties in the order of the jitter."""
    ranks = np.empty(len(values))
    ranks[np.lexsort([jitter, values])] = np.arange(len(values)) / len(values)
    return ranks


def draw(
    name: str, image: np.ndarray, label: Label, truth_m: np.ndarray, baseline: Completion, network: Completion
) -> None:
    """Saves six panels."""
    confidence = cv2.applyColorMap(network.confidence.astype(np.uint8), GREYS)
    panels = [image[..., ::-1], colours(label.depth_m), colours(baseline.depth_m.astype(np.float32))]
    panels += [colours(network.depth_m.astype(np.float32)), confidence, colours(truth_m)]
    names = ["image", "input", "ip-basic", "network", "confidence: yellow is sure", "truth"]
    panels = [np.ascontiguousarray(panel) for panel in panels]
    for panel, text in zip(panels, names):
        cv2.putText(panel, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    sheet = np.vstack([np.hstack(panels[i : i + 2]) for i in (0, 2, 4)])
    cv2.imwrite(str(pictures() / f"city_{name}.png"), sheet)


if __name__ == "__main__":
    tyro.cli(main)
