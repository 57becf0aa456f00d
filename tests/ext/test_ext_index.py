"""The index of BEV pooling: cells, order, cache and limits, against plain numpy."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from ext import BevGrid, IndexCache, build_index, index_of_cells, library
from ext.index import cells_of

GRID = BevGrid((-4.0, 4.0, 0.5), (-3.0, 3.0, 0.5), (-1.0, 1.0))  # 12 x 16 cells


@pytest.fixture(params=["compiled", "torch"])
def implementation(request, monkeypatch):
    """With and without the compiled library."""
    if request.param == "torch":
        monkeypatch.setattr(library, "cpu", lambda: "switched off")
    elif isinstance(library.cpu(), str):
        pytest.skip(library.cpu())
    return request.param


def random_points(samples=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(samples, 2, 9, 3, 5, 3, generator=generator) - 0.5) * torch.tensor([9.0, 7.0, 2.5])


@pytest.mark.parametrize("rule", ["floor", "trunc"])
@pytest.mark.parametrize("samples", [1, 3])
def test_cells_equal_a_loop_over_points(implementation, rule, samples):
    points = random_points(samples)
    expected = []
    for i, (x, y, z) in enumerate(points.double().view(-1, 3).tolist()):
        at = (x + 4) / 0.5, (y + 3) / 0.5, (z + 1) / 2
        x, y, z = (int(v // 1) if rule == "floor" else int(v) for v in at)
        inside = 0 <= x < 16 and 0 <= y < 12 and z == 0
        expected.append((i // (2 * 9 * 3 * 5) * 12 + y) * 16 + x if inside else -1)
    assert cells_of(points, GRID, rule).view(-1).tolist() == expected


@pytest.mark.parametrize(
    ("x", "floor", "trunc"),
    [
        (-4.6, -1, -1),
        (-4.5, -1, -1),
        (-4.49, -1, 0),
        (-4.01, -1, 0),
        (-4.0, 0, 0),
        (-3.5, 1, 1),
        (3.99, 15, 15),
        (4.0, -1, -1),
    ],
)
def test_border_cells(implementation, x, floor, trunc):
    """Rounding towards zero lets the first column take what lies up to one cell outside the grid."""
    points = torch.tensor([x, -3.0, 0.0]).view(1, 1, 1, 1, 1, 3)
    assert cells_of(points, GRID, "floor").item() == floor
    assert cells_of(points, GRID, "trunc").item() == trunc


def test_trunc_equals_the_published_formula(implementation):
    """BEVDepth: ((geometry - (first centre - size / 2)) / size).int(), then only what lies in [0, n) is kept."""
    grid = BevGrid()
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(1, 1, 50, 20, 20, 3, generator=generator) - 0.5) * torch.tensor([110.0, 110.0, 40.0])
    points[0, 0, :2] = torch.round(points[0, 0, :2] / 0.8) * 0.8  # on the edges of cells
    centre, size = torch.tensor([-51.2 + 0.4, -51.2 + 0.4, -1.0]), torch.tensor([0.8, 0.8, 8.0])
    x, y, z = ((points - (centre - size / 2)) / size).int().unbind(-1)
    kept = (x >= 0) & (x < 128) & (y >= 0) & (y < 128) & (z == 0)
    assert (cells_of(points, grid, "trunc") == torch.where(kept, y * 128 + x, -1)).all()


def test_points_that_are_not_numbers_fall_outside(implementation):
    points = (
        torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30])
        .view(1, 1, 4, 1, 1, 1)
        .expand(-1, -1, -1, -1, -1, 3)
    )
    for rule in ("floor", "trunc"):
        assert (cells_of(points, GRID, rule) == -1).all()


@pytest.mark.parametrize("samples", [1, 3])
def test_index_is_sorted_by_cell_and_then_by_point(implementation, samples):
    index = build_index(random_points(samples), GRID)
    cells = index.cell_of.numpy()
    order = np.argsort(cells, kind="stable")
    order = order[cells[order] >= 0]
    assert (index.point.numpy() == order).all()
    camera, in_camera = np.divmod(order, 9 * 3 * 5)
    assert (index.pixel.numpy() == camera * 15 + in_camera % 15).all()
    assert (index.start.numpy() == np.searchsorted(cells[order], np.arange(samples * 12 * 16 + 1))).all()
    assert index.shape == (samples, 2, 9, 3, 5)
    assert all(
        getattr(index, f.name).dtype == torch.int32 for f in fields(index) if f.name not in ("shape", "grid_shape")
    )


def test_slots_keep_the_parts_of_a_cell_in_one_block(implementation):
    counts = [0, 1, 32, 33, 64, 65, 256, 257, 512, 513, 5000]
    parts = [1, 1, 1, 2, 2, 4, 8, 16, 16, 16, 16]
    cells = torch.cat([torch.full((n,), cell) for cell, n in enumerate(counts)]).int()
    index = index_of_cells(cells.view(1, 1, -1, 1, 1), (1, len(counts)))
    slots = index.slots.tolist()
    assert [slots.count(cell) for cell in range(len(counts))] == parts
    for cell, n in enumerate(parts):
        first = slots.index(cell)
        assert slots[first : first + n] == [cell] * n and first % n == 0
    assert sorted(slots, key=lambda cell: (-parts[cell], cell)) == slots


def test_without_a_sample_dimension_and_with_nothing_inside(implementation):
    points = random_points()
    assert (build_index(points[0], GRID).point == build_index(points, GRID).point).all()
    index = build_index(points + 100, GRID)
    assert len(index.point) == 0 and (index.start == 0).all() and (index.cell_of == -1).all()


def test_more_than_int32_can_number_is_refused():
    huge = torch.zeros(1).expand(6, 1024, 1024, 1024, 3)
    with pytest.raises(ValueError, match="split the batch"):
        build_index(huge, GRID)
    with pytest.raises(ValueError, match="split the batch"):
        build_index(torch.zeros(1, 1, 1, 1, 3), BevGrid((0, 1e5, 1), (0, 1e5, 1)))


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="whole number of cells"):
        BevGrid((0.0, 1.0, 0.3))
    for edge in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="whole number of cells"):
            BevGrid((0.0, edge, 0.5))
    for z_m in ((1.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="z_m"):
            BevGrid(z_m=z_m)
    with pytest.raises(ValueError, match="rule"):
        build_index(random_points(), GRID, "round")
    with pytest.raises(ValueError, match="points_m"):
        build_index(torch.zeros(4, 3), GRID)


def test_cells_that_make_no_index_are_refused(implementation):
    cells = torch.zeros(2, 1, 3, 1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="5-dimensional"):
        index_of_cells(cells[0], (2, 2))
    with pytest.raises(ValueError, match="integers"):
        index_of_cells(cells.float(), (2, 2))
    assert len(index_of_cells(cells + 7, (2, 2)).start) == 9
    with pytest.raises(ValueError, match=r"beyond the grid.* 8 cells"):
        index_of_cells(cells + 8, (2, 2))


def test_an_index_made_in_inference_mode_serves_training(implementation):
    with torch.inference_mode():
        points = random_points()
        index = build_index(points, GRID)
        cells = cells_of(points, GRID) + 0
        made = index, index.to("meta"), index_of_cells(cells, GRID.shape), IndexCache().get([], GRID, lambda: points)
    assert cells.is_inference()
    for index in made:
        assert not any(getattr(index, name).is_inference() for name in ("cell_of", "start", "point", "pixel", "slots"))


def test_cache_finds_content_not_objects():
    cache, made = IndexCache(size=2), []

    def request(K, pose, rule="floor"):
        return cache.get((K, pose), GRID, lambda: made.append(1) or random_points(), rule)

    K, pose = torch.eye(3), np.eye(4)
    first = request(K, pose)
    assert request(K.clone(), pose.copy()) is first and len(made) == 1
    assert request(K, pose, "trunc") is not first and len(made) == 2
    moved = pose.copy()
    moved[0, 3] = 1e-9
    assert request(K, moved) is not first and len(made) == 3 and len(cache) == 2
    request(K, pose)  # was used least recently, so it is gone
    assert len(made) == 4 and (cache.hits, cache.misses) == (1, 4)
    assert request(K.t(), pose.T) is not None and len(made) == 4  # equal content, other strides
    with pytest.raises(ValueError, match="object is no array of numbers"):
        request(K, object())
    assert len(IndexCache(size=0).get((K,), GRID, random_points).start) and cache.hits == 2
