"""The z-buffer of ``ext`` against that of ``dense_depth.projection``: equal bit for bit."""

import numpy as np
import pytest
import torch
from conftest import CONFIG, make_scene, moving_track

from dense_depth import projection
from dense_depth.accumulation import SceneCloud
from dense_depth.geometry import invert
from dense_depth.label import label_camera
from dense_depth.projection import new_keys
from ext import library, zbuffer

needs_cpu_library = pytest.mark.skipif(isinstance(library.cpu(), str), reason=f"no CPU library: {library.cpu()}")
BACKENDS = [
    "torch",
    pytest.param("cpu", marks=needs_cpu_library),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(isinstance(library.cuda(), str), reason=f"no CUDA library: {library.cuda()}"),
        ],
    ),
]


def test_constants_are_those_of_projection():
    assert (zbuffer.NEAR_M, zbuffer.FAR_M) == (projection.NEAR_M, projection.FAR_M)
    assert zbuffer.EMPTY_KEY == projection.EMPTY_KEY and projection.DEPTH_STEPS_PER_M == 256


def splat(backend, cloud, selection, K, keys):
    """As ``projection.splat`` prepares it."""
    transforms = (K @ selection.ref_SE3_segment[:, :3]).astype(np.float32)
    start, stop = cloud.start[selection.segments], cloud.stop[selection.segments]
    arrays = cloud.xyz, start.astype(np.int64), stop.astype(np.int64), transforms, selection.code
    device = "cuda" if backend == "cuda" else "cpu"
    tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (*arrays, keys)]
    zbuffer.splat(*tensors, backend)
    return tensors[-1].cpu().numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("seed", range(3))
def test_keys_of_a_scene(tmp_path, backend, scale, seed):
    scene, frame, _, _ = make_scene(tmp_path, tracks=(moving_track(range(0, 3_000_000, 500_000)),), seed=seed)
    cloud = SceneCloud(scene, [frame], CONFIG)
    height, width, K = label_camera(frame, scale)
    selection = cloud.select(invert(frame.world_SE3_cam), frame.timestamp_us, frame.key_sweep)
    expected = new_keys(height, width)
    projection.splat(cloud, selection, K, expected)
    assert (expected != projection.EMPTY_KEY).sum() > 10
    assert (splat(backend, cloud, selection, K, new_keys(height, width)) == expected).all()


class Selected:
    """A cloud of some segments in general position, and the selection of all of them."""

    def __init__(self, points, seed):
        rng = np.random.default_rng(seed)
        self.xyz = np.ascontiguousarray(points.T, np.float32)
        self.start, self.stop = np.array([0, 40_000, 60_000]), np.array([40_000, 60_000, len(points)])
        self.corners = np.full((3, 8, 3), 1e6, np.float32)
        self.corners[:, ::2] *= -1
        self.segments, self.code = np.arange(3), np.array([2 << 5 | 31, 1 << 5, 4 << 5 | 7], np.uint8)
        rotation = np.linalg.qr(np.eye(3) + rng.normal(0, 0.05, (3, 3)))[0]
        rotation *= np.sign(np.diag(rotation))
        self.ref_SE3_segment = np.tile(np.eye(4), (3, 1, 1))
        self.ref_SE3_segment[:, :3, :3] = rotation
        self.ref_SE3_segment[:, :3, 3] = rng.normal(0, 1, (3, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(2))
def test_keys_of_many_points(backend, seed):
    """100,000 points, on borders of pixels and depth steps too: one rounding more or less would show in some."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-60, -40, -20], [60, 40, 300], (100_000, 3))
    points[::7] = np.round(points[::7] * 4) / 4
    points[::1001] = 1e20
    cloud, K = Selected(points, seed), np.array([[555.5, 0, 199.5], [0, 555.5, 99.5], [0, 0, 1]])
    expected = new_keys(200, 400)
    projection.splat(cloud, cloud, K, expected)
    assert (expected != projection.EMPTY_KEY).sum() > 10_000
    assert (splat(backend, cloud, cloud, K, new_keys(200, 400)) == expected).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_segment_ends_where_the_points_do(backend):
    device = "cuda" if backend == "cuda" else "cpu"
    xyz = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]], device=device)
    T = torch.eye(3, 4, device=device)[None]
    both = [zbuffer.new_keys(4, 5, device) for _ in range(2)]
    for keys, stop in zip(both, (2, 10**9)):
        ends = torch.tensor([0], device=device), torch.tensor([stop], device=device)
        zbuffer.splat(xyz, *ends, T, torch.ones(1, dtype=torch.uint8, device=device), keys, backend)
    assert (both[0] == both[1]).all() and (both[0].cpu() != zbuffer.EMPTY_KEY).sum() == 2


def test_tensors_that_do_not_fit_are_named():
    keys = zbuffer.new_keys(4, 5)
    tensors = torch.zeros(3, 2), torch.tensor([0]), torch.tensor([2]), torch.zeros(1, 3, 4), torch.ones(1).byte()
    zbuffer.splat(*tensors, keys)
    with pytest.raises(ValueError, match=r"must be contiguous torch.float32"):
        zbuffer.splat(tensors[0].double(), *tensors[1:], keys)
    for i in range(5):
        with pytest.raises(ValueError, match=r"(xyz|stop|image_T_segment|source) .*: must be \("):
            zbuffer.splat(*(t.repeat_interleave(2, 0) if i == j else t for j, t in enumerate(tensors)), keys)
    with pytest.raises(ValueError, match="does not work on cpu"):
        zbuffer.splat(*tensors, keys, backend="cuda")
