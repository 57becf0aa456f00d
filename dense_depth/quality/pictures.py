"""A label beside its image and truth, to look at."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from dense_depth.label import CERTAIN, Source
from dense_depth.quality.errors import OUTLIER_M, Verdict, judge, reference_depth

PANEL_WIDTH = 1000
TICKS_M = (2, 5, 10, 20, 40, 80)  # the colour scale is logarithmic
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE, LIGHT, GREY, BLACK, BLUE = (255,) * 3, (225,) * 3, (140,) * 3, (0,) * 3, (190, 110, 30)  # BGR
DIM = 0.35  # of the image under points
COLOURS = {Verdict.RIGHT: (70, 200, 70), Verdict.IN_FRONT: (255, 140, 30), Verdict.BEHIND: (40, 40, 255)}  # BGR


def panels(
    image: UInt8[np.ndarray, "image_height image_width 3"],
    depth_m: Float32[np.ndarray, "height width"],
    truth_m: Float32[np.ndarray, "image_height image_width"],
    title: str,
    crop_height: int | None = None,
    source: UInt8[np.ndarray, "height width"] | None = None,
    confidence: UInt8[np.ndarray, "height width"] | None = None,
) -> UInt8[np.ndarray, "panels_height panels_width 3"]:
    """Four panels: the image, the label over it, the truth, and the label's errors over the image in grey.

    A label with source and confidence has two more, in a row between them: its measured pixels and its confidence.

    Args:
        image: BGR.
        depth_m: The label, 0 = none; the whole image at any size.
        truth_m: Truth at the size of the image, 0 = sky.
        title: Names the frame.
        crop_height: Show only so many rows at the bottom of the label, and what they cover of the image.
        source: ``Source`` codes of the label.
        confidence: Of the label, 255 = certain.
    """
    crop_height = crop_height or len(depth_m)
    native_height = round(len(image) * crop_height / len(depth_m))
    verdict = judge(depth_m, reference_depth(depth_m, truth_m))[-crop_height:]
    depth_m, truth_m, image = depth_m[-crop_height:], truth_m[-native_height:], image[-native_height:]

    height = round(PANEL_WIDTH * native_height / image.shape[1])
    small = cv2.resize(image, (PANEL_WIDTH, height), interpolation=cv2.INTER_AREA)
    label = _over(small, depth_m)
    shown = colours(cv2.resize(truth_m, (PANEL_WIDTH, height), interpolation=cv2.INTER_NEAREST))
    errors = cv2.cvtColor(cv2.cvtColor((DIM * small).astype(np.uint8), cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    rows, point_px, counts = [[small, label], [shown, errors]], 5, {}
    if source is not None and confidence is not None:
        is_measured = source[-crop_height:] < Source.COMPLETED
        measured = _over(small, np.where(is_measured, depth_m, np.float32(0)))
        _caption(measured, f"measured: {np.count_nonzero(depth_m * is_measured):,} pixels")
        _scale(measured)
        rows.insert(1, [measured, _confidence_panel(small, confidence[-crop_height:])])
        point_px = 2  # labels are dense
    for kind, colour in COLOURS.items():  # false labels are few: over the others, and larger
        counts[kind] = int(np.count_nonzero(verdict == kind))
        points = _at_panel(
            (verdict == kind).astype(np.float32), small.shape[:2], 2 if kind == Verdict.RIGHT else point_px
        )
        errors[points > 0] = colour

    _caption(small, title)
    _caption(label, f"label: {np.count_nonzero(depth_m):,} of {depth_m.size:,} pixels")
    _caption(shown, "truth")
    for panel in (label, shown):
        _scale(panel)
    _caption(errors, "errors")
    for line, (kind, colour) in enumerate(COLOURS.items(), start=1):
        _caption(errors, f"{counts[kind]:,} {kind.name.lower().replace('_', ' ')}", line, colour)
    return np.vstack([np.hstack(row) for row in rows])


def calibration(figures: dict[str, Any]) -> UInt8[np.ndarray, "plot_height plots_width 3"]:
    """Two plots: the share of labels that are right against stated confidence, and MAE by tenths of the confidence.

    Args:
        figures: What ``LabelErrors.calibration`` says.
    """
    maes_m = [tenth["mae_m"] or 0.0 for tenth in figures["tenths"]]  # None where all labels are on sky
    top_m = max(1.05 * max(maes_m), 1e-3)
    step_m = 10 ** np.floor(np.log10(top_m))
    step_m *= 0.2 if top_m < 2 * step_m else 0.5 if top_m < 5 * step_m else 1
    tenths = np.linspace(0, 1, 6)

    curve, at = _plot("stated confidence", f"share off by at most {OUTLIER_M} m", (1, 1), tenths, tenths)
    cv2.line(curve, at(0, 0), at(1, 1), GREY, 1, cv2.LINE_AA)
    points = [at(found["stated"], found["within"]) for found in figures["bins"]]
    cv2.polylines(curve, [np.array(points)], False, BLUE, 2, cv2.LINE_AA)
    for point, found in zip(points, figures["bins"]):  # area by share
        cv2.circle(curve, point, max(3, round(30 * np.sqrt(found["share"]))), BLUE, -1, cv2.LINE_AA)
    _caption(curve, f"{figures['n']:,.0f} completed labels, calibration error {100 * figures['error']:.1f} %")

    ticks_m = np.arange(0, top_m, step_m)
    bars, at = _plot("labels by confidence, least first", "MAE of each tenth, m", (1, top_m), tenths, ticks_m)
    for i, mae_m in enumerate(maes_m):
        cv2.rectangle(bars, at((i + 0.1) / len(maes_m), 0), at((i + 0.9) / len(maes_m), mae_m), BLUE, -1)
    return np.hstack([curve, bars])


def _plot(
    x_name: str, y_name: str, ends: tuple[float, float], x_ticks: np.ndarray, y_ticks: np.ndarray
) -> tuple[np.ndarray, Callable[[float, float], tuple[int, int]]]:
    """Empty axes from (0, 0) to ``ends``, and the pixel at which a point of them lies."""
    plot = np.full((600, 700, 3), WHITE, np.uint8)
    left, right, top, bottom = 80, 670, 60, 530

    def at(x: float, y: float) -> tuple[int, int]:
        return round(left + (right - left) * x / ends[0]), round(bottom - (bottom - top) * y / ends[1])

    for x in x_ticks:
        cv2.line(plot, at(x, 0), at(x, ends[1]), LIGHT, 1)
        _centred(plot, f"{x:.4g}", (at(x, 0)[0], bottom + 22))
    for y in y_ticks:
        cv2.line(plot, at(0, y), at(ends[0], y), LIGHT, 1)
        _centred(plot, f"{y:.4g}", (left - 30, at(0, y)[1] + 5))
    cv2.rectangle(plot, at(0, ends[1]), at(ends[0], 0), BLACK, 1)
    _centred(plot, x_name, ((left + right) // 2, bottom + 50))
    cv2.putText(plot, y_name, (left, top - 10), FONT, 0.5, BLACK, 1, cv2.LINE_AA)
    return plot, at


def _centred(plot: np.ndarray, text: str, at: tuple[int, int]) -> None:
    (width, _), _ = cv2.getTextSize(text, FONT, 0.5, 1)
    cv2.putText(plot, text, (at[0] - width // 2, at[1]), FONT, 0.5, BLACK, 1, cv2.LINE_AA)


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
