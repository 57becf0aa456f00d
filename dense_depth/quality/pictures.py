"""Labels beside their image and truth, to look at."""

from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from dense_depth import InputError
from dense_depth.datasets.scene import CameraFrame
from dense_depth.label import CERTAIN, Label, Source
from dense_depth.quality.errors import Verdict, judge
from dense_depth.quality.truth import FrameTruth, reference_depth

PANEL_WIDTH = 1000
TICKS_M = (2, 5, 10, 20, 40, 80)  # the colour scale is logarithmic
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE = (255, 255, 255)
DIM = 0.35  # of the image under points
COLOURS = {Verdict.RIGHT: (70, 200, 70), Verdict.IN_FRONT: (255, 140, 30), Verdict.BEHIND: (40, 40, 255)}  # BGR


def worst_and_ordinary(
    false_labels: Mapping[tuple[str, str], Mapping[str, int]], worst: int
) -> dict[str, tuple[str, str, str]]:
    """Chooses the labels to draw: those with most false pixels, and of each camera the one with the median number.

    Args:
        false_labels: Their number by sample token, by scene and camera.
        worst: How many of the worst to draw; those without any are left out.

    Returns:
        Scene, camera and sample token of each, by the name of its file.
    """
    labels = sorted(
        (-n_false, scene, camera, token)
        for (scene, camera), of_frame in false_labels.items()
        for token, n_false in of_frame.items()
    )
    chosen = {f"worst-{i:02d}.png": label[1:] for i, label in enumerate(labels[:worst], start=1) if label[0]}
    for camera in sorted({camera for _, camera in false_labels}):
        of_camera = [label for label in labels if label[2] == camera]
        chosen[f"ordinary-{camera}.png"] = of_camera[len(of_camera) // 2][1:]
    return chosen


def draw(
    frame: CameraFrame, label: Label, truth: FrameTruth, title: str, crop_height: int | None = None
) -> UInt8[np.ndarray, "panels_height panels_width 3"]:
    """The ``panels`` of a camera frame.

    Raises:
        InputError: There is no image of the frame's size.
    """
    image = cv2.imread(str(frame.path)) if frame.path.is_file() else None
    if image is None or image.shape[:2] != (frame.height, frame.width):
        raise InputError(f"{frame.path}: no image of {frame.width}x{frame.height} pixels")
    return panels(image, label, truth.depth_m, title, crop_height)


def panels(
    image: UInt8[np.ndarray, "image_height image_width 3"],
    label: Label,
    truth_m: Float32[np.ndarray, "image_height image_width"],
    title: str,
    crop_height: int | None = None,
) -> UInt8[np.ndarray, "panels_height panels_width 3"]:
    """Four panels: the image, the label over it, the truth, and the label's errors over the image in grey.

    A label with confidence has two more, in a row between them: its measured pixels and its confidence.

    Args:
        image: BGR.
        label: The whole image at any size.
        truth_m: Truth at the size of the image, 0 = sky.
        title: Names the frame.
        crop_height: Show only so many rows at the bottom of the label, and what they cover of the image.
    """
    bottom = slice(-(crop_height or label.height), None)
    native_height = round(len(image) * (crop_height or label.height) / label.height)
    depth_m, verdict = label.depth_m[bottom], judge(label.depth_m, reference_depth(label.depth_m, truth_m))[bottom]
    size = PANEL_WIDTH, round(PANEL_WIDTH * native_height / image.shape[1])
    small = cv2.resize(image[-native_height:], size, interpolation=cv2.INTER_AREA)
    shown = colours(cv2.resize(truth_m[-native_height:], size, interpolation=cv2.INTER_NEAREST))
    point_px = 5 if label.confidence is None else 2  # labels with confidence are dense
    errors = _errors_panel(small, verdict, point_px)
    rows = [[small, _label_panel(small, depth_m, "label")], [shown, errors]]
    if label.confidence is not None:
        measured_m = np.where(label.source[bottom] < Source.COMPLETED, depth_m, np.float32(0))
        measured = _label_panel(small, measured_m, "measured")
        rows.insert(1, [measured, _confidence_panel(small, label.confidence[bottom])])
    _caption(small, title)
    _caption(shown, "truth")
    _scale(shown)
    return np.vstack([np.hstack(row) for row in rows])


def _label_panel(
    image: UInt8[np.ndarray, "panel_height panel_width 3"], depth_m: Float32[np.ndarray, "height width"], name: str
) -> np.ndarray:
    """Depths over the dimmed image, and how many there are."""
    panel = _over(image, depth_m)
    _caption(panel, f"{name}: {np.count_nonzero(depth_m):,} of {depth_m.size:,} pixels")
    _scale(panel)
    return panel


def _errors_panel(
    image: UInt8[np.ndarray, "panel_height panel_width 3"], verdict: UInt8[np.ndarray, "height width"], point_px: int
) -> np.ndarray:
    """Where labels are right and where they are false, over the dimmed image in grey."""
    panel = cv2.cvtColor(cv2.cvtColor((DIM * image).astype(np.uint8), cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    for kind, colour in COLOURS.items():  # false labels are few: over the others, and larger
        own = (verdict == kind).astype(np.float32)
        panel[_at_panel(own, image.shape[:2], 2 if kind == Verdict.RIGHT else point_px) > 0] = colour
    _caption(panel, "errors")
    for line, (kind, colour) in enumerate(COLOURS.items(), start=1):
        n = np.count_nonzero(verdict == kind)
        _caption(panel, f"{n:,} {kind.name.lower().replace('_', ' ')}", line, colour)
    return panel


def _over(
    image: UInt8[np.ndarray, "panel_height panel_width 3"], depth_m: Float32[np.ndarray, "height width"]
) -> np.ndarray:
    """A label over its dimmed image."""
    panel = (DIM * image).astype(np.uint8)
    nearest = _at_panel(depth_m, image.shape[:2], 3)
    panel[nearest > 0] = colours(nearest)[nearest > 0]
    return panel


def _confidence_panel(
    image: UInt8[np.ndarray, "panel_height panel_width 3"], confidence: UInt8[np.ndarray, "height width"]
) -> np.ndarray:
    """Confidence over the dimmed image, and its colours at the top right."""
    panel = (DIM * image).astype(np.uint8)
    shown = _at_panel(confidence.astype(np.float32), image.shape[:2], 3).astype(np.uint8)
    panel[shown > 0] = cv2.applyColorMap(shown, cv2.COLORMAP_VIRIDIS)[shown > 0]
    _caption(panel, "confidence")
    right = panel.shape[1] - 30
    panel[:30, right - CERTAIN - 11 :] = 0
    ramp = np.arange(CERTAIN + 1, dtype=np.uint8)
    panel[2:12, right - CERTAIN - 1 : right] = cv2.applyColorMap(ramp[None], cv2.COLORMAP_VIRIDIS)
    for tick in (0, 0.5, 1):
        at = (right - CERTAIN - 1 + round(CERTAIN * tick) - 8, 26)
        cv2.putText(panel, f"{tick:g}", at, FONT, 0.4, WHITE, 1, cv2.LINE_AA)
    return panel


def _at_panel(values: Float32[np.ndarray, "height width"], size: tuple[int, ...], point_px: int) -> np.ndarray:
    """Positive values as squares on a panel of this (height, width); the smallest is on top, 0 where there is none."""
    canvas = np.full(size, np.inf, np.float32)
    v, u = np.nonzero(values)
    at = ((np.stack([v, u]) + 0.5) * [[size[0] / values.shape[0]], [size[1] / values.shape[1]]]).astype(int)
    np.minimum.at(canvas, tuple(at), values[v, u])
    point_px = max(point_px, round(size[1] / values.shape[1]))
    nearest = cv2.erode(canvas, np.ones((point_px, point_px), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return np.where(np.isfinite(nearest), nearest, 0)


def _place(depth_m: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Where a depth lies on the colour scale, from 0 to 1."""
    near, far = np.log(TICKS_M[0]), np.log(TICKS_M[-1])
    return np.clip((np.log(np.maximum(depth_m, 1e-3)) - near) / (far - near), 0, 1)


def colours(depth_m: Float32[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """Turbo, near is red; sky is dark."""
    near = (255 * (1 - _place(depth_m))).astype(np.uint8)
    return np.where(depth_m[..., None] > 0, cv2.applyColorMap(near, cv2.COLORMAP_TURBO), np.uint8(30))


def _caption(panel: np.ndarray, text: str, line: int = 0, colour: tuple[int, int, int] = WHITE) -> None:
    (width, _), _ = cv2.getTextSize(text, FONT, 0.5, 1)
    panel[20 * line : 20 * line + 20, : width + 8] = 0
    cv2.putText(panel, text, (4, 20 * line + 15), FONT, 0.5, colour, 1, cv2.LINE_AA)


def _scale(panel: np.ndarray) -> None:
    """The colours of depths, at the top right."""
    width, right = 240, panel.shape[1] - 30
    panel[:30, right - width - 10 :] = 0
    depths = np.geomspace(TICKS_M[0], TICKS_M[-1], width, dtype=np.float32)
    panel[2:12, right - width : right] = colours(depths[None])
    for tick, place in zip(TICKS_M, _place(np.array(TICKS_M, np.float32))):
        text = f"{tick} m" if tick == TICKS_M[-1] else str(tick)
        at = (right - width + round(width * float(place)) - 8, 26)
        cv2.putText(panel, text, at, FONT, 0.4, WHITE, 1, cv2.LINE_AA)
