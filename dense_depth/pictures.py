"""A label beside its image and truth, to look at."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from dense_depth.metrics import Verdict, judge, reference_depth

PANEL_WIDTH = 1000
TICKS_M = (2, 5, 10, 20, 40, 80)  # the colour scale is logarithmic
FONT, WHITE = cv2.FONT_HERSHEY_SIMPLEX, (255, 255, 255)
DIM = 0.35  # of the image under points
COLOURS = {Verdict.RIGHT: (70, 200, 70), Verdict.IN_FRONT: (255, 140, 30), Verdict.BEHIND: (40, 40, 255)}  # BGR


def panels(
    image: UInt8[np.ndarray, "image_height image_width 3"],
    depth_m: Float32[np.ndarray, "height width"],
    truth_m: Float32[np.ndarray, "image_height image_width"],
    title: str,
    crop_height: int | None = None,
) -> UInt8[np.ndarray, "panels_height panels_width 3"]:
    """Four panels: the image, the label over it, the truth, and the label's errors over the image in grey.

    Args:
        image: BGR.
        depth_m: The label, 0 = none; the whole image at any size.
        truth_m: Truth at the size of the image, 0 = sky.
        title: Names the frame.
        crop_height: Show only so many rows at the bottom of the label, and what they cover of the image.
    """
    crop_height = crop_height or len(depth_m)
    native_height = round(len(image) * crop_height / len(depth_m))
    verdict = judge(depth_m, reference_depth(depth_m, truth_m))[-crop_height:]
    depth_m, truth_m, image = depth_m[-crop_height:], truth_m[-native_height:], image[-native_height:]

    height = round(PANEL_WIDTH * native_height / image.shape[1])
    small = cv2.resize(image, (PANEL_WIDTH, height), interpolation=cv2.INTER_AREA)
    label = (DIM * small).astype(np.uint8)
    nearest = _at_panel(depth_m, small.shape[:2], 3)
    label[nearest > 0] = _colours(nearest)[nearest > 0]
    truth = cv2.resize(truth_m, (PANEL_WIDTH, height), interpolation=cv2.INTER_NEAREST)
    errors = cv2.cvtColor(cv2.cvtColor((DIM * small).astype(np.uint8), cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    counts = {}
    for kind, colour in COLOURS.items():  # false labels are few: over the others, and larger
        counts[kind] = int(np.count_nonzero(verdict == kind))
        points = _at_panel((verdict == kind).astype(np.float32), small.shape[:2], 2 if kind == Verdict.RIGHT else 5)
        errors[points > 0] = colour

    _caption(small, title)
    _caption(label, f"label: {np.count_nonzero(depth_m):,} of {depth_m.size:,} pixels")
    shown = _colours(truth)
    _caption(shown, "truth")
    for panel in (label, shown):
        _scale(panel)
    _caption(errors, "errors")
    for line, (kind, colour) in enumerate(COLOURS.items(), start=1):
        _caption(errors, f"{counts[kind]:,} {kind.name.lower().replace('_', ' ')}", line, colour)
    return np.vstack([np.hstack([small, label]), np.hstack([shown, errors])])


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


def _colours(depth_m: Float32[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
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
    panel[2:12, right - width : right] = _colours(depths[None])
    for tick, place in zip(TICKS_M, _place(np.array(TICKS_M, np.float32))):
        text = f"{tick} m" if tick == TICKS_M[-1] else str(tick)
        at = (right - width + round(width * float(place)) - 8, 26)
        cv2.putText(panel, text, at, FONT, 0.4, WHITE, 1, cv2.LINE_AA)
