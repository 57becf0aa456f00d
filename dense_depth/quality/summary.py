"""The figures of a whole version, and those of one row of its manifest."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from catalog.figures import to_columns
from dense_depth.quality.calibration import calibration
from dense_depth.quality.errors import SPLITS, DepthErrors, LabelErrors, ratio


def summarise(errors: Sequence[LabelErrors] | Sequence[DepthErrors], cameras: Sequence[str]) -> dict[str, Any]:
    """The figures of a whole version: over all of it, by camera, and, against truth, by ``SPLITS`` and causes.

    Args:
        errors: One or more; sums of floats depend on their order.
        cameras: The camera that each is of.

    Returns:
        ``means`` under "all" and, by camera, under "cameras", with the share of all labels; for ``LabelErrors`` also
        ``split`` under each name of ``SPLITS``, ``causes``, ``origins`` and ``calibration``. Figures as by ``known``.
    """
    by_camera = {camera: _sum([e for e, of in zip(errors, cameras) if of == camera]) for camera in sorted({*cameras})}
    overall = _sum(errors)
    means = {"all": overall.means()} | {camera: own.means() for camera, own in by_camera.items()}
    shares = {name: {"share": ratio(own["n"], means["all"]["n"])} | own for name, own in means.items()}
    figures: dict[str, Any] = {"all": shares.pop("all"), "cameras": shares}
    if isinstance(overall, LabelErrors):
        figures |= {name: overall.split(name) for name in SPLITS} | {"causes": overall.causes()}
        figures |= {"origins": overall.origins(), "calibration": calibration(overall.by_confidence)}
    return known(figures)


def row_figures(errors: LabelErrors | DepthErrors, n_rows: int) -> dict[str, float | None]:
    """The figures of one shard, by the names of the manifest's columns.

    Args:
        errors: Of its labels.
        n_rows: So many rows at the bottom of each label were compared.
    """
    if isinstance(errors, DepthErrors):
        return known(to_columns("held_out", errors.means()))
    stated = calibration(errors.by_confidence)
    figures = errors.means() | {"evaluated_rows": float(n_rows)}
    figures |= {"calibration_error": stated["error"]} if stated else {}
    return known(to_columns("truth", figures) | to_columns("completed", errors.origins().get("completed", {})))


def known(figures: Any) -> Any:
    """NaN, where there was nothing to compare, as None in nested dicts and lists: JSON and manifests have no NaN."""
    if isinstance(figures, dict):
        return {name: known(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [known(value) for value in figures]
    return None if isinstance(figures, float) and np.isnan(figures) else figures


def _sum(errors: Sequence[Any]) -> Any:
    return sum(errors[1:], start=errors[0])
