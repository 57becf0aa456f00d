"""BEVDepth: sizes as in the reference, where gradients go, and where features of moved cameras come to lie."""

import numpy as np
import pytest
import torch
from torch import nn

import training.models.bevdepth as model_module
from dense_depth.geometry import invert, project, se3, transform
from ext import BevGrid
from training.depth.bins import DepthBins
from training.models.backbone import ImageEncoder
from training.models.bevdepth import BevDepth, BevTrunk, ModelConfig
from training.models.depth_net import DepthNet, camera_values
from training.models.lift import Cameras

TINY = ModelConfig("resnet-tiny", None, neck=8, depth=16, context=8, trunk=8, bev_neck=4, past=1)
BINS, GRID = DepthBins.uniform(2, 18, 2), BevGrid((-16, 16, 1.0), (-16, 16, 1.0))
HEIGHT, WIDTH = 64, 96
K = np.array([[60.0, 0, 47.5], [0, 60, 31.5], [0, 0, 1]])
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # the ego frame's axes from those of a camera that looks ahead


def about_z(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


MOUNTS = [se3(about_z(degrees) @ AHEAD, np.array([1.0, y, 1.5])) for degrees, y in ((10, 0.3), (-50, -0.2))]


def cameras_at(key_SE3_ego=None, batch=2, bev_T_ego=None):
    """Two cameras of each sample, on a car that stands elsewhere than in the key frame."""
    poses = np.stack([(np.eye(4) if key_SE3_ego is None else key_SE3_ego) @ mount for mount in MOUNTS])
    bev = np.eye(3) if bev_T_ego is None else bev_T_ego
    parts = np.tile(K, (batch, 2, 1, 1)), np.tile(np.eye(3), (batch, 2, 1, 1)), np.tile(poses, (batch, 1, 1, 1))
    return Cameras(*(torch.from_numpy(part) for part in (*parts, np.tile(bev, (batch, 1, 1)))))


def make(config=TINY):
    torch.manual_seed(0)
    return BevDepth(config, BINS, GRID)


def images_of(frames=2, batch=2):
    return torch.randn(batch, frames, 2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


MOVED = se3(about_z(20), np.array([-3.0, 0.5, 0]))  # the key ego frame from that of the past frame


# Sizes


def test_sizes_of_the_reference():
    """R50 at 256x704 with one past frame, as REFERENCE lists them; nothing is computed."""
    config = ModelConfig()
    with torch.device("meta"):
        encoder = ImageEncoder(config.backbone, None, config.neck)
        features = encoder(torch.empty(6, 3, 256, 704))
        assert features.shape == (6, 512, 16, 44)
        logits, context = DepthNet(512, 512, 80, 112).eval()(features, torch.empty(6, 27))
        assert (logits.shape, context.shape) == ((6, 112, 16, 44), (6, 80, 16, 44))
        trunk = BevTrunk(160, 160, 64)
        assert trunk(torch.empty(1, 160, 128, 128)).shape == (1, 256, 128, 128)
        maps, x = [], trunk.stem(torch.empty(1, 160, 128, 128))
        for stage in trunk.stages:
            x = stage(x)
            maps.append(tuple(x.shape[1:]))
        assert maps == [(160, 64, 64), (320, 32, 32), (640, 16, 16)]
    bins = DepthBins.uniform()
    with torch.device("meta"):
        model = BevDepth(config, bins, BevGrid())
    assert model.out_channels == 256
    assert model.depth_net.depth[-1].out_channels == 112 and model.trunk.stem[0].in_channels == 160


def test_camera_values_are_in_the_order_of_the_reference():
    def numbered(first, rows, columns):
        return torch.arange(first, first + rows * columns, dtype=torch.float64).view(1, 1, rows, columns)

    cameras = Cameras(
        numbered(100, 3, 3), numbered(200, 3, 3), numbered(300, 4, 4), numbered(400, 3, 3)[0]
    )  # K, image, mount, bird's-eye view
    expected = [100, 104, 102, 105]  # fx fy cx cy
    expected += [200, 201, 202, 203, 204, 205]  # first two rows
    expected += [400, 401, 403, 404, 408]
    expected += range(300, 312)
    values = camera_values(cameras)
    assert values.dtype == torch.float32 and values.shape == (1, 1, 27)
    assert values[0, 0].tolist() == expected
    both = camera_values(cameras_at())
    assert both.shape == (2, 2, 27) and not torch.equal(both[:, 0], both[:, 1])


# Gradients


def test_forward_and_gradients_of_every_part():
    """Through the pooled map alone, every weight is moved: those of the depth branch by where features are put."""
    model, images = make(), images_of().requires_grad_()
    lifted = model(images, [cameras_at(), cameras_at(MOVED)])
    assert lifted.depth_logits.shape == (2, 2, 8, 4, 6) and lifted.bev.shape == (2, 16, 32, 32)
    (lifted.bev * torch.randn(lifted.bev.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still
    assert images.grad[:, 0].abs().max() > 0 and not images.grad[:, 1].any()


def test_depth_logits_are_supervised_apart_from_the_map():
    model = make()
    model(images_of(), [cameras_at(), cameras_at(MOVED)]).depth_logits.square().sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name.split(".")[0] for name in moved} == {"encoder", "depth_net"}
    assert not any("context" in name for name in moved)
    assert any("depth_gate" in name for name in moved)


def test_past_frames_add_channels():
    """Its weights in the trunk count, it is seen, and it keeps its place behind the key frame."""
    model, images = make().eval(), images_of()
    cameras = [cameras_at(), cameras_at(MOVED)]
    assert model.trunk.stem[0].in_channels == 16
    assert make(ModelConfig(**{**TINY.__dict__, "past": 0})).trunk.stem[0].in_channels == 8
    model.trunk = nn.Identity()
    with torch.no_grad():
        both = model(images, cameras).bev
        alone = model(images[:, :1], cameras[:1]).bev
        torch.testing.assert_close(both[:, :8], alone)
        changed = model(torch.stack([images[:, 0], images[:, 1].flip(-1)], 1), cameras).bev
        torch.testing.assert_close(changed[:, :8], alone)
        assert (changed[:, 8:] - both[:, 8:]).abs().max() > 1e-3
        # The same images where the car has not moved: the same map.
        same = model(images[:, [0, 0]], [cameras_at(), cameras_at()]).bev
    torch.testing.assert_close(same[:, 8:], same[:, :8])


def test_samples_do_not_mix():
    model, images = make().eval(), images_of()
    cameras = [cameras_at(), cameras_at(MOVED)]
    with torch.no_grad():
        together = model(images, cameras)
        for b in range(2):
            alone = model(images[b : b + 1], [Cameras(*(x[b : b + 1] for x in frame)) for frame in cameras])
            torch.testing.assert_close(alone.bev, together.bev[b : b + 1], rtol=1e-4, atol=1e-5)


def test_bf16_is_near_fp32():
    model, images = make().eval(), images_of()
    with torch.no_grad():
        exact = model(images, [cameras_at(), cameras_at(MOVED)])
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images, [cameras_at(), cameras_at(MOVED)])
    for a, b in zip(rough, exact):
        assert (a.float() - b).abs().max() < 0.2 * b.abs().max()


# Where features come to lie


class Certain(nn.Module):
    """In place of the depth net: of each image in turn, one cell at one depth with context 1; the rest has none."""

    def __init__(self, bins_and_cells):
        super().__init__()
        self.at, self.values = list(bins_and_cells), []

    def forward(self, x, values):
        self.values.append(values)
        n = len(x)
        logits, context = (
            torch.zeros(n, BINS.n, HEIGHT // 16, WIDTH // 16),
            torch.zeros(n, 1, HEIGHT // 16, WIDTH // 16),
        )
        for i in range(n):
            at = self.at.pop(0)
            if at is not None:
                depth_bin, row, column = at
                logits[i, depth_bin, row, column] = 100
                context[i, 0, row, column] = 1
        return logits, context


class NoEncoder(nn.Module):
    def forward(self, images):
        return images[:, :1, ::16, ::16]


@pytest.mark.parametrize("bev_T_ego", [np.eye(3), np.diag([-1.0, 1, 1]) @ about_z(15) * 1.05])
def test_a_thing_at_rest_is_in_the_same_cell_when_seen_from_elsewhere(bev_T_ego):
    """The first camera of a past car that stood 3 m behind and was turned sees it in another cell and at another depth.

    Chosen so that from both places the thing is at the middle of a frustum cell.
    """
    depths_m = BINS.centres_m.double().numpy()
    # All middles of the past frame's frustum cells, in the key ego frame, and where the key frame's camera sees them.
    v, u = np.meshgrid(np.arange(4) * 16 + 7.5, np.arange(6) * 16 + 7.5, indexing="ij")
    best = (np.inf,)
    for d, z in enumerate(depths_m):
        rays = np.linalg.inv(K) @ np.stack([u.ravel(), v.ravel(), np.ones(24)])
        points = transform(MOVED @ MOUNTS[0], (rays * z).T)
        uv_px, seen_m = project(K, transform(invert(MOUNTS[0]), points))
        cells, bins = (uv_px - 7.5) / 16, (seen_m - 3) / 2
        off = np.abs(np.column_stack([cells - cells.round(), bins - bins.round()])).max(1)
        inside = (seen_m > 2) & (cells.round() >= 0).all(1) & (cells.round() < [6, 4]).all(1) & (bins.round() < 8)
        in_grid = (np.linalg.norm(points[:, :2], axis=1) < 14) & (np.abs(points[:, 2]) < 2)
        for i in np.flatnonzero(inside & in_grid):
            if off[i] < best[0]:
                past_at, key_at = (d, i // 6, i % 6), (round(bins[i]), round(cells[i, 1]), round(cells[i, 0]))
                best = off[i], past_at, key_at, points[i]
    off, past_at, key_at, point = best
    assert off < 0.25 and past_at != key_at

    model = make(ModelConfig(**{**TINY.__dict__, "context": 1}))
    model.encoder, model.trunk = NoEncoder(), nn.Identity()
    model.depth_net = Certain([key_at, None, past_at, None])
    cameras = [cameras_at(None, 1, bev_T_ego), cameras_at(MOVED, 1, bev_T_ego)]
    bev = model(torch.zeros(1, 2, 2, 3, HEIGHT, WIDTH), cameras).bev[0]
    column, row = np.floor((bev_T_ego @ point)[:2] + 16).astype(int)
    assert bev[1, row, column] == pytest.approx(1, abs=1e-5) and bev[1].sum() == pytest.approx(1, abs=1e-4)
    near = bev[0, row - 1 : row + 2, column - 1 : column + 2]
    assert near.sum() == pytest.approx(1, abs=1e-4) and bev[0].sum() == pytest.approx(1, abs=1e-4)


def test_past_frames_look_through_the_key_frames_cameras():
    """What tells the depth net of the camera is its mount, not how far the car has gone; as in the reference."""
    model = make(ModelConfig(**{**TINY.__dict__, "context": 1}))
    model.encoder, model.trunk, model.depth_net = NoEncoder(), nn.Identity(), Certain([None] * 4)
    key = cameras_at(None, 1)
    model(torch.zeros(1, 2, 2, 3, HEIGHT, WIDTH), [key, cameras_at(MOVED, 1)])
    assert len(model.depth_net.values) == 2
    for values in model.depth_net.values:
        torch.testing.assert_close(values, camera_values(key)[0])


@pytest.mark.parametrize("parity", [False, True])
def test_frustum_of_both_rules(parity, monkeypatch):
    """Depths, columns and rounding that the pooling gets: middles, or as in the reference."""
    seen = []

    def spy(points_m, grid, rule):
        seen.append((points_m, rule))
        return build_index(points_m, grid, rule)

    build_index = model_module.build_index
    monkeypatch.setattr(model_module, "build_index", spy)
    model = make(ModelConfig(**{**TINY.__dict__, "past": 0, "parity": parity})).eval()
    with torch.no_grad():
        model(images_of(1, 1), [cameras_at(None, 1)])
    ((points_m, rule),) = seen
    assert rule == ("trunc" if parity else "floor") and points_m.shape == (1, 2, 8, 4, 6, 3)
    points = transform(invert(MOUNTS[1]), points_m[0, 1].double().numpy().reshape(-1, 3))
    uv_px, z = project(K, points)
    first, last = ((0, 0), (95, 63)) if parity else ((7.5, 7.5), (87.5, 55.5))
    np.testing.assert_allclose(uv_px[[0, -1]], [first, last], atol=1e-3)
    np.testing.assert_allclose(np.unique(z.round(4)), np.arange(2, 18, 2) + (0 if parity else 1))


def test_compiles_but_for_the_index():
    """The same values, and no break in the graph but for the one that is asked for."""
    from torch._dynamo.utils import counters

    model, images = make().eval(), images_of()
    cameras = [cameras_at(), cameras_at(MOVED)]
    plain = model(images, cameras)
    counters.clear()
    compiled = torch.compile(model, backend="eager")(images, cameras)
    torch.testing.assert_close(compiled.bev, plain.bev)
    torch.testing.assert_close(compiled.depth_logits, plain.depth_logits)
    assert all("_index" in reason for reason in counters["graph_break"]), counters["graph_break"]
