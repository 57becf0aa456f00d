"""Targets of the center head against float64 loops and numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from ext import BevGrid
from training.detection.boxes import CLASSES, TASKS, Boxes
from training.models.center_targets import TargetConfig, center_targets, gaussian_radius, strided

GRID = BevGrid((-8.0, 8.0, 0.5), (-6.0, 10.0, 0.8))  # 20 rows, 32 columns: no axis can be taken for the other
CONFIG = TargetConfig(max_objects=9)


def frame(rows, names):
    return Boxes(np.array(rows, dtype=np.float32).reshape(-1, 9), np.array([CLASSES.index(name) for name in names]))


def random_frame(n, seed=0, largest_m=9):
    rng = np.random.default_rng(seed)
    low, high = [-7.9, -5.9, -2, 0.3, 0.3, 0.5, -4, -9, -9], [7.9, 9.9, 2, largest_m, largest_m, 4, 4, 9, 9]
    return Boxes(rng.uniform(low, high, (n, 9)).astype(np.float32), rng.integers(len(CLASSES), size=n))


def radius_of(length, width, overlap=0.1):
    """From the larger root of each quadratic a r^2 - b r + c = 0, multiplied by a: "/2" in place of "/2a"."""
    b, c = length + width, length * width
    return min(
        a * np.roots([a, -b_, c_]).max()
        for a, b_, c_ in (
            (1, b, c * (1 - overlap) / (1 + overlap)),
            (4, 2 * b, (1 - overlap) * c),
            (4 * overlap, -2 * overlap * b, -(1 - overlap) * c),
        )
    )


def test_radius():
    sizes = torch.tensor(np.random.default_rng(0).uniform(0.3, 30, (200, 2)))
    for overlap in (0.1, 0.5, 0.7):
        expected = [radius_of(length, width, overlap) for length, width in sizes.numpy()]
        torch.testing.assert_close(gaussian_radius(sizes, overlap), torch.tensor(expected))
    one = gaussian_radius(torch.ones(1, 2, dtype=torch.float64), 0.1)
    assert one.item() == pytest.approx((-0.4 + math.sqrt(1.6)) / 2)


def test_heatmaps_by_brute_force():
    boxes, classes = random_frame(30, largest_m=16)
    targets = center_targets(Boxes(boxes, classes), GRID, CONFIG)
    expected = np.zeros((len(CLASSES), 20, 32))
    radii = []
    for (x, y, _, length, width, *_), kind in zip(boxes.astype(np.float64), classes):
        column, row = math.floor((x + 8) / 0.5), math.floor((y + 6) / 0.8)
        radii.append(max(2, int(radius_of(length / 0.5, width / 0.8))))
        for r in range(20):
            for c in range(32):
                if abs(r - row) <= radii[-1] and abs(c - column) <= radii[-1]:
                    sigma = (2 * radii[-1] + 1) / 6
                    value = math.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * sigma**2))
                    expected[kind, r, c] = max(expected[kind, r, c], value)
    assert len({*radii}) > 2 and expected.sum(0).min() == 0
    heat = torch.cat([task.heatmap for task in targets.tasks])
    assert [len(task.heatmap) for task in targets.tasks] == [len(task) for task in TASKS]
    np.testing.assert_allclose(heat.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(heat.numpy() == 1, expected == 1)


def test_codes_by_hand():
    """A bus at (1.3, 2.6): (1.3 + 8) / 0.5 = 18.6 columns and (2.6 + 6) / 0.8 = 10.75 rows from the low corner."""
    rows = [[1.3, 2.6, -0.7, 12, 3, 4, math.radians(150), 5, math.nan], [-8, -6, 1, 1, 1, 1, 0, 0, 0]]
    targets = center_targets(frame(rows, ["bus", "trailer"]), GRID, CONFIG)
    task = targets.tasks[2]
    expected = [0.6, 0.75, -0.7, math.log(12), math.log(3), math.log(4), 0.5, -math.sqrt(3) / 2, 5, math.nan]
    np.testing.assert_allclose(task.code[0].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(task.code[1].numpy(), [0, 0, 1, 0, 0, 0, 0, 1, 0, 0], atol=1e-6)
    assert task.cell[:2].tolist() == [10 * 32 + 18, 0]
    assert task.mask.tolist() == [True] * 2 + [False] * 7 and not task.code[2:].any()
    assert not any(other.mask.any() for i, other in enumerate(targets.tasks) if i != 2)
    assert targets.left_out == 0


def test_outside_is_left_out_and_counted():
    size = [0, 1, 1, 1, 0, 0, 0]
    corners = [[-8, -6], [7.999, 9.999], [-8.01, 0], [8, 0], [0, -6.01], [0, 10], [-8.6, 0]]
    cars = frame([[*xy, *size] for xy in corners], ["car"] * 7)
    targets = center_targets(cars, GRID, CONFIG)
    assert targets.left_out == 5
    assert targets.tasks[0].cell[targets.tasks[0].mask].tolist() == [0, 20 * 32 - 1]
    # The reference truncates: one more cell at the low edges.
    targets = center_targets(cars, GRID, dataclasses.replace(CONFIG, rule="trunc"))
    assert targets.left_out == 3
    assert targets.tasks[0].cell[:4].tolist() == [0, 20 * 32 - 1, 7 * 32, 16]
    assert targets.tasks[0].code[2, 0].item() == pytest.approx(-0.02, abs=1e-5)
    many = frame([[0, 0, *size]] * 12, ["barrier"] * 12)
    targets = center_targets(many, GRID, CONFIG)
    assert targets.left_out == 3 and targets.tasks[3].mask.all()


def test_stride():
    """BEVDepth's 0.2 m voxels at a stride of 4 are the cells of the default grid."""
    voxels = BevGrid((-51.2, 51.2, 0.2), (-51.2, 51.2, 0.2))
    assert strided(voxels, 4) == BevGrid() and strided(BevGrid(), 1) == BevGrid()
    car = frame([[0.9, -0.1, 0, 4, 2, 1, 0, 0, 0]], ["car"])
    task = center_targets(car, strided(BevGrid(), 2), CONFIG).tasks[0]
    assert task.heatmap.shape == (1, 64, 64) and task.cell[0] == 31 * 64 + 32
    np.testing.assert_allclose(task.code[0, :2].numpy(), [0.9 / 1.6, 1 - 0.1 / 1.6], rtol=1e-5)


def test_batches():
    frames = [random_frame(30, seed=1), frame([], []), random_frame(3, seed=2)]
    single = [center_targets(f, GRID, CONFIG) for f in frames]
    batch = default_collate(single)
    assert batch.left_out.tolist() == [int(t.left_out) for t in single]
    for i, task in enumerate(batch.tasks):
        for name, stacked in task._asdict().items():
            assert torch.equal(stacked, torch.stack([getattr(t.tasks[i], name) for t in single])), name
    assert not batch.tasks[0].heatmap[1].any() and not batch.tasks[0].mask[1].any()
