"""The center head's loss against float64 numpy, its decoding against the boxes that the targets were made from."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from ext import BevGrid
from training import loop
from training.detection.boxes import CLASSES, TASKS, Boxes
from training.models.center_head import (
    CenterHead,
    CenterHeadConfig,
    TaskOutput,
    center_loss,
    circle_nms,
    decode,
    focal_loss,
)
from training.models.center_targets import TargetConfig, center_targets

GRID = BevGrid((-8.0, 8.0, 0.5), (-6.0, 10.0, 0.8))
CONFIG = CenterHeadConfig(targets=TargetConfig(max_objects=12))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_frame(n, seed):
    rng = np.random.default_rng(seed)
    low, high = [-7.9, -5.9, -2, 0.3, 0.3, 0.5, -3, -9, -9], [7.9, 9.9, 2, 9, 3, 4, 3, 9, 9]
    return Boxes(rng.uniform(low, high, (n, 9)).astype(np.float32), rng.integers(len(CLASSES), size=n))


def batch_of(*frames):
    return default_collate([center_targets(frame, GRID, CONFIG.targets) for frame in frames])


def random_outputs(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        TaskOutput(*(torch.randn(samples, n, 20, 32, generator=generator).requires_grad_() for n in (len(task), 10)))
        for task in TASKS
    ]


def spread(targets, min_logit=-8.0):
    """Outputs that say what the targets say, at the cells of the centres; at others no object."""
    outputs = []
    for target in targets.tasks:
        samples, objects = torch.nonzero(target.mask, as_tuple=True)
        code = torch.zeros(len(target.mask), 10, 20 * 32)
        code[samples, :, target.cell[samples, objects]] = target.code[samples, objects].nan_to_num(0.0)
        heat = torch.where(target.heatmap == 1, 8.0, min_logit)
        outputs.append(TaskOutput(heat, code.view(-1, 10, 20, 32)))
    return outputs


def test_focal_loss_by_hand():
    chance = torch.tensor([[0.8, 0.6], [0.3, 0.5]], dtype=torch.float64)
    target = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    expected = (
        -(0.2**2) * math.log(0.8)  # peak
        - 0.6**2 * math.log(0.4) * 0.5**4  # beside a peak
        - 0.3**2 * math.log(0.7)
        - 0.5**2 * math.log(0.5)  # peak
    )
    assert focal_loss(chance.logit(), target).item() == pytest.approx(expected, rel=1e-9)
    sure = torch.tensor([100.0, -100.0])
    assert focal_loss(sure, 1 - sure.sigmoid()).item() == pytest.approx(-2 * (1 - 1e-4) ** 2 * math.log(1e-4), rel=1e-3)


def expected_loss(outputs, frames, velocity_weight):
    """In float64, cell by cell from the boxes; only the heat maps are those of the targets."""
    targets = batch_of(*frames)
    heat, code, first = 0.0, 0.0, 0
    for output, target, task in zip(outputs, targets.tasks, TASKS):
        chance = 1 / (1 + np.exp(-output.heatmap.detach().double().numpy()))
        wanted = target.heatmap.double().numpy()
        value = np.where(
            wanted == 1, -np.log(chance) * (1 - chance) ** 2, -np.log(1 - chance) * chance**2 * (1 - wanted) ** 4
        )
        heat += value.sum() / max(1, (wanted == 1).sum())
        total, n = 0.0, 0
        for b, (boxes, classes) in enumerate(frames):
            for box, kind in zip(boxes.astype(np.float64), classes):
                if not first <= kind < first + len(task):
                    continue
                n += 1
                across, along = (box[0] + 8) / 0.5, (box[1] + 6) / 0.8
                column, row = int(across), int(along)
                vector = [
                    across - column,
                    along - row,
                    box[2],
                    *np.log(box[3:6]),
                    *(f(box[6]) for f in (np.sin, np.cos)),
                ]
                error = np.abs(output.code[b, :, row, column].detach().double().numpy() - [*vector, *box[7:]])
                total += np.nansum(error * [*[1.0] * 8, velocity_weight, velocity_weight])
        code += 0.25 * total / max(1, n)
        first += len(task)
    return heat, code


@pytest.mark.parametrize("velocity_weight", [0.5, 1.0])
def test_loss(velocity_weight):
    frames = [random_frame(20, 0), random_frame(0, 1), random_frame(5, 2)]
    frames[0].boxes[3, 7:] = np.nan
    outputs = random_outputs(3)
    config = dataclasses.replace(CONFIG, velocity_weight=velocity_weight)
    terms = center_loss(outputs, batch_of(*frames), config)
    heat, code = expected_loss(outputs, frames, velocity_weight)
    assert terms["heatmap"].item() == pytest.approx(heat, rel=1e-5)
    assert terms["code"].item() == pytest.approx(code, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(heat + code, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        again = center_loss(outputs, batch_of(*frames), config)
    assert again["loss"].dtype == torch.float32 and torch.equal(again["loss"], terms["loss"])


def test_unknown_velocity_pulls_nothing():
    frame = Boxes(np.array([[1, 1, 0, 4, 2, 1, 0, np.nan, np.nan]], np.float32), np.zeros(1, np.int64))
    outputs = random_outputs(1)
    center_loss(outputs, batch_of(frame), CONFIG)["loss"].backward()
    gradient = outputs[0].code.grad[0, :, 8, 18]
    assert (gradient[:8].abs() == 0.25).all() and not gradient[8:].any()
    assert all(torch.isfinite(output.heatmap.grad).all() for output in outputs)


def test_no_objects():
    outputs = random_outputs(2)
    terms = center_loss(outputs, batch_of(random_frame(0, 0), random_frame(0, 0)), CONFIG)
    expected = sum(focal_loss(output.heatmap, torch.zeros(())) for output in outputs)
    assert terms["code"] == 0 and terms["heatmap"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_processes_average_to_one(monkeypatch):
    """Two processes with one and two samples: their mean gradient is that of one process with three."""
    frames = [random_frame(1, 0), random_frame(12, 1), random_frame(7, 2)]
    outputs = random_outputs(3)
    center_loss(outputs, batch_of(*frames), CONFIG)["loss"].backward()
    expected = [part.grad.clone() for output in outputs for part in output]

    parts = slice(0, 1), slice(1, 3)
    counts = []
    monkeypatch.setattr(loop.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(loop.distributed, "get_world_size", lambda: 2)
    for reduce in (lambda own: counts.append(own.clone()), lambda own: own.copy_(sum(counts))):
        monkeypatch.setattr(loop.distributed, "all_reduce", reduce)
        for output in outputs:
            output.heatmap.grad = output.code.grad = None
        for part in parts:
            mine = [TaskOutput(output.heatmap[part], output.code[part]) for output in outputs]
            (center_loss(mine, batch_of(*frames[part]), CONFIG)["loss"] / 2).backward()
    assert len(counts) == 2
    for got, want in zip((part.grad for output in outputs for part in output), expected):
        torch.testing.assert_close(got, want)


def in_order(boxes, classes):
    order = np.lexsort((*boxes.T[::-1], classes))
    return boxes[order], classes[order]


def test_decoded_targets_are_the_boxes():
    frames = [random_frame(30, 3), random_frame(2, 4), random_frame(0, 5)]
    config = dataclasses.replace(CONFIG, suppression_m2=(0.0,) * 6)
    targets = batch_of(*frames)
    assert not targets.left_out.any()
    decoded = decode(spread(targets), GRID, config)
    for frame, (found, scores) in zip(frames, decoded):
        assert found.boxes.dtype == np.float32 and found.classes.dtype == np.int64
        (want, want_classes), (got, got_classes) = in_order(*frame), in_order(*found)
        np.testing.assert_array_equal(got_classes, want_classes)
        np.testing.assert_allclose(got, want, atol=1e-4)
        np.testing.assert_allclose(scores, 1 / (1 + math.exp(-8)), rtol=1e-6)


@pytest.mark.parametrize("task", range(len(TASKS)))
def test_suppression_compares_squared_distances(task):
    """Of two boxes of one task, of any class, the better stays, up to the root of the number."""
    root = math.sqrt(CONFIG.suppression_m2[task])
    for gap, left in ((0.98 * root, 1), (1.02 * root, 2)):
        outputs = [TaskOutput(torch.full((1, len(t), 20, 32), -9.0), torch.zeros(1, 10, 20, 32)) for t in TASKS]
        heat, code = outputs[task]
        heat[0, 0, 8, 4], heat[0, -1, 8, 20] = 1.0, 2.0
        code[0, 0, 8, 20] = gap / 0.5 - 16  # the cells are 16 x 0.5 m apart
        ((found, scores),) = decode(outputs, GRID, CONFIG)
        assert found.boxes[:, 0].tolist() == pytest.approx([gap - 6, -6][:left], abs=1e-5)
        first = CLASSES.index(TASKS[task][0])
        assert found.classes.tolist() == [first + len(TASKS[task]) - 1, first][:left]
        assert scores.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))][:left])


def brute_force_nms(centers, scores, radius2):
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all((centers[i][0] - centers[k][0]) ** 2 + (centers[i][1] - centers[k][1]) ** 2 > radius2 for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("radius2", CONFIG.suppression_m2)
def test_circle_nms(radius2):
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 300):
        centers, scores = rng.uniform(-10, 10, (n, 2)).astype(np.float32), rng.uniform(size=n).astype(np.float32)
        kept = circle_nms(centers, scores, radius2)
        assert kept.tolist() == brute_force_nms(centers, scores, radius2)
        assert n < 300 or 1 < len(kept) < n


def test_limits_of_decoding():
    """Score, range and number; the best come first."""
    logits, code = torch.full((1, 1, 20, 32), -9.0), torch.zeros(1, 10, 20, 32)
    code[:, 7] = 1
    logits[0, 0, 4, 5], logits[0, 0, 4, 15], logits[0, 0, 10, 5] = 2.0, 3.0, 1.0
    logits[0, 0, 10, 15], logits[0, 0, 10, 25] = math.log(0.099 / 0.901), math.log(0.101 / 0.899)
    logits[0, 0, 15, 5], code[0, 2, 15, 5] = 4.0, 10.5  # too high above ground
    empty = [TaskOutput(torch.full((1, len(task), 20, 32), -9.0), code) for task in TASKS[1:]]

    def found(**limits):
        ((boxes, scores),) = decode([TaskOutput(logits, code), *empty], GRID, dataclasses.replace(CONFIG, **limits))
        return [tuple(xy) for xy in boxes.boxes[:, :2].astype(np.float64).round(2).tolist()], scores

    at = {(4, 15): (-0.5, -2.8), (4, 5): (-5.5, -2.8), (10, 5): (-5.5, 2.0), (10, 25): (4.5, 2.0)}
    places, scores = found()
    assert places == [*at.values()] and (np.diff(scores) < 0).all()
    assert found(max_boxes=2)[0] == [*at.values()][:2]
    assert found(candidates=4)[0] == [*at.values()][:3]
    assert found(min_score=0.5)[0] == [*at.values()][:3]
    assert found(center_range_m=(-5, -9, -9, 9, 9, 9))[0] == [(-0.5, -2.8), (4.5, 2.0)]
    assert found(center_range_m=(-9, -9, -9, 9, 9, 11))[0][0] == (-5.5, 6.0)


def test_head():
    """Shapes, the chance it starts from, fp32 inside autocast, and that it learns a frame."""
    torch.manual_seed(0)
    grid = BevGrid((-8.0, 8.0, 0.25), (-6.0, 10.0, 0.4))
    head = CenterHead(6, grid, dataclasses.replace(CONFIG, channels=8, stride=2))
    assert head.grid == GRID
    bev = torch.randn(2, 6, 20, 32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(bev.bfloat16())
    for output, task in zip(outputs, TASKS):
        assert output.heatmap.shape == (2, len(task), 20, 32) and output.code.shape == (2, 10, 20, 32)
        assert output.heatmap.dtype == output.code.dtype == torch.float32
    mean = torch.cat([output.heatmap.flatten() for output in outputs]).sigmoid().mean()
    assert 0.05 < mean < 0.2

    frames = [random_frame(3, 1), random_frame(2, 2)]
    targets = head.targets(frames)
    for got, want in zip(targets.tasks, batch_of(*frames).tasks):
        assert all(map(torch.equal, got, want))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    losses = []
    for _ in range(50):
        loss = head.loss(head(bev), targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    for frame, (boxes, _) in zip(frames, head.decode(head(bev))):
        distance = np.linalg.norm(frame.boxes[:, None, :2] - boxes.boxes[None, :, :2], axis=2)
        assert (distance + 100 * (frame.classes[:, None] != boxes.classes)).min(1).max() < 0.5
