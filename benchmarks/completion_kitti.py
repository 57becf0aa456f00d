"""Depth completion on recorded KITTI with official ground truth: classical variants and the network.

Drive 0001, cameras 02 and 03, one sweep as input; nothing was trained on it. Errors are KITTI's, per image and then
averaged, over the pixels that have both truth and a completed depth: look at how many of them were filled, too.
``--checkpoint FILE`` names another network than the one that ships. Ten frames are drawn to look at.
"""

from pathlib import Path

import cv2
import numpy as np
import tyro
from _recorded import kitti_raw, pictures

from dense_depth import InputError
from dense_depth.completion.classical import IpBasicConfig, distance_confidence, ip_basic
from dense_depth.completion.predict import Completion, open_completer
from dense_depth.datasets.kitti_files import read_calib
from dense_depth.label import Label, Source, dequantise

DATE, DRIVE = "2011_09_26", "2011_09_26_drive_0001_sync"
BASELINE = "ip-basic fast, gaussian"
VARIANTS = {
    BASELINE: IpBasicConfig(),
    "ip-basic fast, bilateral": IpBasicConfig(blur="bilateral"),
    "ip-basic multiscale, gaussian": IpBasicConfig(multiscale=True),
    "ip-basic multiscale, bilateral": IpBasicConfig(multiscale=True, blur="bilateral"),
    "ip-basic fast, gaussian, no extrapolation": IpBasicConfig(extrapolate=False),
}
N_PICTURES, PANEL = 10, (1000, 302)  # width, height
NEAR_M, FAR_M, WORST_M = 3.0, 80.0, 2.0  # ends of the colours


def main(checkpoint: Path | None = None) -> None:
    """Prints one table and saves the pictures.

    Args:
        checkpoint: Weights of the network; those that ship if not given.
    """
    root = kitti_raw().parent / "kitti_depth_completion"
    sparse_paths = sorted(root.glob(f"data_depth_annotated/{DRIVE}/proj_depth/velodyne_raw/*/*.png"))
    if not sparse_paths:
        print(f"skipped: no recorded data in {root}")
        return
    methods = {name: classical(config) for name, config in VARIANTS.items()}
    methods[f"{BASELINE}, measured kept"] = lambda image, label: keep_measured(methods[BASELINE](image, label), label)
    try:
        methods["network"] = open_completer("network", checkpoint).complete
    except InputError as error:
        if checkpoint:
            raise SystemExit(str(error)) from None
        print(f"without the network: {error}")
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in methods}
    pictured = set(np.linspace(0, len(sparse_paths) - 1, N_PICTURES).astype(int))
    for index, path in enumerate(sparse_paths):
        label, image, truth_m = read_frame(root, path)
        completions = {name: complete(image, label) for name, complete in methods.items()}
        for name, completion in completions.items():
            rows[name].append(kitti_errors(completion.depth_m, truth_m))
        if index in pictured:
            draw(f"{label.camera} frame {int(path.stem):02d}", image, label, truth_m, completions)

    print(f"{len(sparse_paths)} images of {DRIVE}, means over images")
    print(f"{'':41s}  RMSE mm   MAE mm   iRMSE 1/km   iMAE 1/km   filled: of image %   of truth %")
    for name, errors in rows.items():
        rmse, mae, irmse, imae, of_image, of_truth = np.mean(errors, 0)
        print(f"{name:41s} {rmse:8.1f} {mae:8.1f} {irmse:12.3f} {imae:11.3f} {of_image:19.2f} {of_truth:12.2f}")
    print(f"pictures of {len(pictured)} frames: {pictures()}/completion_*.png")


def classical(config: IpBasicConfig):
    return lambda image, label: Completion(ip_basic(label.depth_m, config), distance_confidence(label.depth_m))


def keep_measured(completion: Completion, label: Label) -> Completion:
    """As the completion job does."""
    return completion._replace(depth_m=np.where(label.depth_m > 0, label.depth_m, completion.depth_m))


def read_frame(root: Path, path: Path) -> tuple[Label, np.ndarray, np.ndarray]:
    """The sparse depth as a label, the RGB image, the truth in metres."""
    camera = path.parent.name
    image = cv2.imread(str(root / "raw" / DATE / DRIVE / camera / "data" / f"{path.stem}.jpg"))
    truth = cv2.imread(str(path.parents[2] / "groundtruth" / camera / path.name), cv2.IMREAD_UNCHANGED)
    depth_m = dequantise(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    P = read_calib(root / "raw" / DATE / "calib_cam_to_cam.txt", f"P_rect_{camera[-2:]}", (3, 4))
    label = Label.from_maps(
        depth_m=depth_m,
        source=np.where(depth_m > 0, Source.KEY_SWEEP, Source.NONE).astype(np.uint8),
        K=P[:, :3],
        sample_token=path.stem,
        camera=camera,
        timestamp_us=0,
    )
    return label, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dequantise(truth)


def kitti_errors(depth_m: np.ndarray, truth_m: np.ndarray) -> tuple[float, ...]:
    """RMSE and MAE in mm, iRMSE and iMAE in 1/km, and the percentages of the image and of the truth that are filled."""
    compared = (truth_m > 0) & (depth_m > 0)
    depth, truth = depth_m[compared].astype(np.float64), truth_m[compared].astype(np.float64)
    mm, per_km = 1e3 * (depth - truth), 1e3 * (1 / depth - 1 / truth)
    errors = [mean for e in (mm, per_km) for mean in (np.sqrt((e**2).mean()), np.abs(e).mean())]
    return *errors, 100 * (depth_m > 0).mean(), 100 * compared.sum() / (truth_m > 0).sum()


def draw(title: str, image: np.ndarray, label: Label, truth_m: np.ndarray, completions: dict[str, Completion]) -> None:
    """Image and input; for the baseline and the network depth, error and confidence; the truth."""
    panels = [
        caption(cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), PANEL, interpolation=cv2.INTER_AREA), title),
        caption(colours(points(label.depth_m)), f"input; red {NEAR_M:.0f} m to blue {FAR_M:.0f} m"),
        caption(colours(points(truth_m)), "truth"),
    ]
    for name in [name for name in (BASELINE, "network") if name in completions]:
        depth_m, confidence = completions[name]
        error_m = np.where((truth_m > 0) & (depth_m > 0), np.abs(depth_m - truth_m) + 1e-3, 0)
        shade = cv2.applyColorMap(255 - shrink(confidence), cv2.COLORMAP_BONE)
        panels += [
            caption(colours(shrink(depth_m)), name),
            caption(heat(points(error_m.astype(np.float32), largest=True)), f"{name}: error, up to {WORST_M:.0f} m"),
            caption(shade, f"{name}: confidence, dark is sure"),
        ]
    sheet = np.vstack([np.hstack(panels[i : i + 3]) for i in range(0, len(panels), 3)])
    cv2.imwrite(str(pictures() / f"completion_{title.replace(' ', '_')}.png"), sheet)


def shrink(values: np.ndarray) -> np.ndarray:
    return cv2.resize(values, PANEL, interpolation=cv2.INTER_NEAREST)


def points(values: np.ndarray, largest: bool = False) -> np.ndarray:
    """Positive values at the size of a panel, 3 pixels wide; the smallest on top, or the largest."""
    if largest:
        return shrink(cv2.dilate(values, np.ones((3, 3), np.uint8)))
    nearest = shrink(cv2.erode(np.where(values > 0, values, np.float32(1e9)), np.ones((3, 3), np.uint8)))
    return np.where(nearest < 1e9, nearest, 0)


def colours(depth_m: np.ndarray) -> np.ndarray:
    """Turbo on a logarithmic scale; grey where there is none."""
    place = np.log(np.maximum(depth_m, NEAR_M) / NEAR_M) / np.log(FAR_M / NEAR_M)
    shown = cv2.applyColorMap((255 * (1 - np.minimum(place, 1))).astype(np.uint8), cv2.COLORMAP_TURBO)
    return np.where(depth_m[..., None] > 0, shown, np.uint8(30))


def heat(error_m: np.ndarray) -> np.ndarray:
    shown = cv2.applyColorMap((255 * np.minimum(error_m / WORST_M, 1)).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.where(error_m[..., None] > 0, shown, np.uint8(90))


def caption(panel: np.ndarray, text: str) -> np.ndarray:
    cv2.rectangle(panel, (0, 0), (10 + 9 * len(text), 20), (0, 0, 0), -1)
    cv2.putText(panel, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return panel


if __name__ == "__main__":
    tyro.cli(main)
