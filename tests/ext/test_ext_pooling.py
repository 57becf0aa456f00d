"""BEV pooling against float64 sums in numpy, and its promises: equal bits, gradients, torch.compile, autocast, DDP."""

import ctypes
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import ext
from ext import BACKENDS, BevGrid, backends, bev_pool, bev_pool_bilinear, index_of_cells, library, status, use_backend

GRID_SHAPE = (7, 9)
LIVE = [name for name in BACKENDS if name != "cuda" and status()[name] is None]
needs_cpu_library = pytest.mark.skipif("cpu" not in LIVE, reason=f"no CPU library: {status()['cpu']}")


def frustum(
    batch=2, cameras=2, bins=11, rows=3, columns=5, channels=20, seed=0, shared=True, outside=0.3, dtype=torch.float32
):
    """Depth, context and the cell of every point; some points are outside."""
    rng = np.random.default_rng(seed)
    samples = 1 if shared else batch
    cells = rng.integers(0, math.prod(GRID_SHAPE), (samples, cameras, bins, rows, columns))
    cells += np.arange(samples).reshape(-1, 1, 1, 1, 1) * math.prod(GRID_SHAPE)
    cells[rng.random(cells.shape) < outside] = -1
    depth = torch.from_numpy(rng.random((batch, cameras, bins, rows, columns))).to(dtype)
    context = torch.from_numpy(rng.standard_normal((batch, cameras, channels, rows, columns))).to(dtype)
    return depth, context, torch.from_numpy(cells).int()


def truth(depth, context, cells, upstream=None):
    """Sums, and gradients of sum(out * upstream), in float64 numpy."""
    depth, context = depth.detach().double().numpy(), context.detach().double().numpy()
    batch = len(depth)
    n_cells, channels = math.prod(GRID_SHAPE), context.shape[2]
    cells = (
        np.broadcast_to(cells.numpy(), depth.shape)
        if len(cells) == 1
        else cells.numpy() - np.arange(batch).reshape(-1, 1, 1, 1, 1) * n_cells
    )
    inside = (cells >= 0) & (cells < n_cells)
    b, n, _, h, w = np.nonzero(inside)
    cell, features = cells[inside], context[b, n, :, h, w]
    out = np.zeros((batch, n_cells, channels))
    np.add.at(out, (b, cell), depth[inside][:, None] * features)
    out = out.transpose(0, 2, 1).reshape(batch, channels, *GRID_SHAPE)
    if upstream is None:
        return out
    rows_of_grad = upstream.detach().double().numpy().reshape(batch, channels, n_cells)[b, :, cell]
    grad_depth, grad_context = np.zeros(depth.shape), np.zeros(context.transpose(0, 1, 3, 4, 2).shape)
    grad_depth[inside] = (rows_of_grad * features).sum(1)
    np.add.at(grad_context, (b, n, h, w), depth[inside][:, None] * rows_of_grad)
    return out, grad_depth, grad_context.transpose(0, 1, 4, 2, 3)


def run(depth, context, cells, upstream, backend="auto", **kwargs):
    depth, context = depth.detach().requires_grad_(), context.detach().requires_grad_()
    out = bev_pool(depth, context, index_of_cells(cells, GRID_SHAPE), backend, **kwargs)
    return out, *torch.autograd.grad(out, (depth, context), upstream.to(out.dtype))


def error(result, expected):
    """Largest error as a part of the largest value."""
    return np.abs(result.detach().double().numpy() - expected).max() / max(np.abs(expected).max(), 1e-300)


def random_upstream(context, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(context), context.shape[2], *GRID_SHAPE, generator=generator)


@pytest.mark.parametrize("backend", LIVE)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [1, 7, 16, 32, 33, 80, 129, 300])
def test_fp32_against_float64(backend, shared, channels):
    depth, context, cells = frustum(channels=channels, shared=shared, bins=70)
    upstream = random_upstream(context)
    for result, expected in zip(run(depth, context, cells, upstream, backend), truth(depth, context, cells, upstream)):
        assert result.shape == expected.shape and result.dtype == torch.float32
        assert error(result, expected) <= 1e-6


@pytest.mark.parametrize("backend", LIVE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("depth_dtype", ["half", "fp32"])
def test_half_inputs_are_summed_in_fp32(backend, dtype, depth_dtype):
    """The only errors are those of rounding the inputs, and each gradient once."""
    exact_depth, exact_context, cells = frustum(channels=80, bins=200)
    exact_context = exact_context.relu()  # as features are; where signs cancel, rounded inputs alone may cost more
    depth = exact_depth.to(dtype) if depth_dtype == "half" else exact_depth
    context = exact_context.to(dtype)
    upstream = random_upstream(context)
    out, *grads = run(depth, context, cells, upstream, backend)
    assert out.dtype == torch.float32
    assert error(out, truth(exact_depth, exact_context, cells)) <= 2e-3
    expected = truth(depth, context, cells, upstream)
    assert error(out, expected[0]) <= 1e-6
    for grad, tensor, wanted in zip(grads, (depth, context), expected[1:]):
        assert grad.dtype == tensor.dtype
        assert error(grad, wanted) <= (1e-6 if tensor.dtype == torch.float32 else torch.finfo(dtype).eps / 2)
    halved = run(depth, context, cells, upstream, backend, out_dtype=dtype)[0]
    assert (halved == out.to(dtype)).all()


@pytest.mark.parametrize("backend", LIVE)
def test_long_sums_of_positive_numbers_keep_their_digits(backend):
    """40,000 positive terms in each of few cells, where prefix sums in fp32 lose three digits; parts keep them."""
    depth, context, _ = frustum(batch=1, bins=500, rows=16, columns=20, cameras=1, channels=8)
    cells = (torch.arange(500 * 320) % 4).int().view(1, 1, 500, 16, 20)
    out = run(depth, context.abs(), cells, random_upstream(context), backend)[0]
    assert error(out, truth(depth, context.abs(), cells)) <= (1e-6 if backend == "cpu" else 1e-5)


@pytest.mark.parametrize("backend", LIVE)
@pytest.mark.parametrize("case", ["nothing inside", "one cell takes all", "one point", "no cameras", "empty batch"])
def test_corner_cases(backend, case):
    sizes = {
        "one point": {"bins": 1, "rows": 1, "columns": 1, "cameras": 1},
        "no cameras": {"cameras": 0},
        "empty batch": {"batch": 0},
    }
    depth, context, cells = frustum(**sizes.get(case, {}), outside=0.0)
    cells = torch.full_like(cells, -1 if case == "nothing inside" else 3) if case != "empty batch" else cells
    upstream = random_upstream(context)
    for result, expected in zip(run(depth, context, cells, upstream, backend), truth(depth, context, cells, upstream)):
        assert result.shape == expected.shape and (expected.size == 0 or error(result, expected) <= 1e-6)


@pytest.mark.parametrize("backend", LIVE)
def test_memory_layout_does_not_matter(backend):
    depth, context, cells = frustum(channels=24)
    upstream = random_upstream(context)
    expected = run(depth, context, cells, upstream, backend)
    other = [
        depth.transpose(2, 4).contiguous().transpose(2, 4),
        context.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
        cells,
        upstream.contiguous(memory_format=torch.channels_last),
    ]
    assert not other[0].is_contiguous() and not other[1].is_contiguous()
    assert all((a == b).all() for a, b in zip(run(*other, backend), expected))
    wide = torch.randn(2, 2, 48, 3, 5)
    wide[:, :, ::2] = context
    assert (run(depth, wide[:, :, ::2], cells, upstream, backend)[0] == expected[0]).all()


@needs_cpu_library
def test_equal_bits_every_time_and_for_any_number_of_threads():
    """Work for five threads, three calls at once; as uneven as around a car, where most cells are empty."""
    grid_shape, frustum_shape, channels = (180, 60), (1, 3, 118, 16, 44), 80
    cells = torch.from_numpy(np.random.default_rng(0).exponential(900, frustum_shape).astype(np.int32))
    cells[cells >= math.prod(grid_shape) // 2] = -1
    depth, context = torch.rand(frustum_shape), torch.randn(1, 3, 16, 44, channels)
    upstream, index = torch.randn(1, channels, *grid_shape), index_of_cells(cells, grid_shape)

    def run_with(threads):
        torch.set_num_threads(threads)
        inputs = depth.clone().requires_grad_(), context.permute(0, 1, 4, 2, 3).requires_grad_()
        out = bev_pool(*inputs, index, "cpu")
        return out.detach(), *torch.autograd.grad(out, inputs, upstream)

    before = torch.get_num_threads()
    try:
        alone = run_with(1)
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(run_with, (1, 2, 5) * 8))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, alone, strict=True))

    inside = cells >= 0
    lifted = (depth.double()[..., None] * context.double()[:, :, None])[inside]
    sums = torch.zeros(math.prod(grid_shape), channels, dtype=torch.float64).index_add_(0, cells[inside], lifted)
    assert error(alone[0], sums.T.view(1, channels, *grid_shape).numpy()) <= 1e-6


@needs_cpu_library
def test_a_sum_is_fused_multiply_adds_in_the_documented_order():
    """70 terms make 4 parts of 17 or 18; emulated with exact products in extended precision."""
    rng = np.random.default_rng(0)
    depth, context = rng.random(70).astype(np.float32), rng.standard_normal(70).astype(np.float32)
    parts = []
    for part in range(4):
        total = np.float32(0)
        for i in range(70 * part // 4, 70 * (part + 1) // 4):
            total = np.float32(np.longdouble(depth[i]) * np.longdouble(context[i]) + np.longdouble(total))
        parts.append(total)
    expected = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    cells = torch.zeros(1, 70, 1, 1, 1, dtype=torch.int32)
    frustum_shape = torch.from_numpy(depth).view(1, 70, 1, 1, 1), torch.from_numpy(context).view(1, 70, 1, 1, 1)
    assert bev_pool(*frustum_shape, index_of_cells(cells, (1, 1)), "cpu").item() == expected


@pytest.mark.parametrize("backend", LIVE)
@pytest.mark.parametrize("shared", [True, False])
def test_gradcheck(backend, shared):
    depth, context, cells = frustum(bins=4, columns=2, channels=3, shared=shared, dtype=torch.float64)
    index = index_of_cells(cells, GRID_SHAPE)
    inputs = depth.requires_grad_(), context.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, c: bev_pool(d, c, index, backend), inputs)


def test_rows_beyond_int32():
    """Row offsets (pixel times channels) above 2^31; the memory is never touched, so hardly any is used."""
    pixels, channels = 2**16, 2**15 + 8
    try:
        context = torch.from_numpy(np.zeros((1, 1, 256, 256, channels), np.float32))
    except MemoryError:
        pytest.skip("no address space for 8.6 GB")
    context[0, 0, 255, 255] = torch.arange(channels)
    cells = torch.full((1, 1, 1, 256, 256), -1, dtype=torch.int32)
    cells[..., -1, -1] = 1
    depth = torch.full((1, 1, 1, 256, 256), 2.0)
    with use_backend("cpu" if "cpu" in LIVE else "torch"):
        out = bev_pool(depth, context.permute(0, 1, 4, 2, 3), index_of_cells(cells, (1, 2)))
    assert pixels * channels > 2**31
    assert (out[0, :, 0, 1] == 2.0 * torch.arange(channels)).all() and (out[0, :, 0, 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", LIVE)
def test_opcheck(backend, dtype):
    depth, context, cells = frustum(channels=4, dtype=dtype)
    index = index_of_cells(cells, GRID_SHAPE)
    rows = context.permute(0, 1, 3, 4, 2).reshape(2, -1, 4).contiguous()
    flat = depth.view(2, -1).requires_grad_(), rows.requires_grad_()
    arrays = index.cell_of, index.start, index.point, index.pixel, index.slots
    torch.library.opcheck(torch.ops.dense_depth.bev_pool.default, (*flat, *arrays, 11, 15, torch.float32, backend))
    grad = torch.randn(2, math.prod(GRID_SHAPE), 4)
    frozen = [t.detach() for t in flat]
    torch.library.opcheck(
        torch.ops.dense_depth.bev_pool_backward.default, (grad, *frozen, index.cell_of, 11, 15, backend)
    )


def test_compiles_into_one_graph():
    depth, context, cells = frustum()
    index, upstream = index_of_cells(cells, GRID_SHAPE), random_upstream(context)

    def lift(logits, context):
        return bev_pool(logits.softmax(2), context, index).relu()

    compiled = torch.compile(lift, fullgraph=True, backend="aot_eager")
    results = []
    for function in (lift, compiled):
        inputs = depth.clone().requires_grad_(), context.clone().requires_grad_()
        out = function(*inputs)
        results.append((out, *torch.autograd.grad(out, inputs, upstream)))
    assert all((a == b).all() for a, b in zip(*results))


@pytest.mark.parametrize("backend", LIVE)
def test_autocast_leaves_the_sums_in_fp32(backend):
    depth, context, cells = frustum(channels=8)
    index = index_of_cells(cells, GRID_SHAPE)
    weight = torch.eye(8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        features = torch.einsum("bnchw,cd->bndhw", context, weight)
        out = bev_pool(depth, features, index, backend)
        again = run(depth, features, cells, random_upstream(context), backend)  # the backward pass too
    assert all((a == b).all() for a, b in zip(again, run(depth, features, cells, random_upstream(context), backend)))
    assert features.dtype == torch.bfloat16 and out.dtype == torch.float32
    assert error(out, truth(depth, features.detach(), cells)) <= 1e-6
    out.sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


@pytest.mark.parametrize("backend", LIVE)
def test_what_is_not_finite_stays_where_it_is(backend):
    """Depths outside the grid do not count at all, and a cell's gradient reaches only its own points."""
    depth, context, cells = frustum(batch=1)
    depth[cells < 0] = float("nan")
    upstream = random_upstream(context)
    upstream[..., 0, 0] = float("inf")
    out, grad_depth, grad_context = run(depth, context, cells, upstream, backend)
    assert out.isfinite().all()
    assert (grad_depth.isfinite() == (cells != 0)).all()
    assert (grad_context.isfinite().all(2) == (cells != 0).all(2)).all()


def test_a_second_derivative_is_refused():
    depth, context, cells = frustum()
    out = bev_pool(depth.requires_grad_(), context, index_of_cells(cells, GRID_SHAPE))
    (grad,) = torch.autograd.grad(out.square().sum(), depth, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_gradients_only_where_they_are_wanted(wanted):
    depth, context, cells = frustum()
    depth, context = depth.requires_grad_(wanted[0]), context.requires_grad_(wanted[1])
    out = bev_pool(depth, context, index_of_cells(cells, GRID_SHAPE))
    assert out.requires_grad == any(wanted)
    if any(wanted):
        out.sum().backward()
    assert ((depth.grad is not None), (context.grad is not None)) == wanted


def test_data_parallel_gradients_equal_plain_ones(tmp_path):
    from torch.nn.parallel import DistributedDataParallel

    class Lift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.features = torch.nn.Conv3d(4, 4, 1)

        def forward(self, depth, context):
            return bev_pool(depth, self.features(context.transpose(1, 2)).transpose(1, 2), index)

    depth, context, cells = frustum(channels=4)
    index = index_of_cells(cells, GRID_SHAPE)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain, wrapped = Lift(), DistributedDataParallel(Lift())
        for model in (plain, wrapped):
            model(depth, context).square().sum().backward()
        assert (plain.features.weight.grad == wrapped.module.features.weight.grad).all()
    finally:
        torch.distributed.destroy_process_group()


def bilinear_truth(depth, context, points, grid):
    """Every point over its four neighbours, a loop in float64."""
    ny, nx = grid.shape
    out = np.zeros((len(depth), context.shape[2], ny, nx))
    for at in np.ndindex(*depth.shape):
        b, n, _, h, w = at
        x, y, z = points[at].tolist()
        if not grid.z_m[0] <= z < grid.z_m[1]:
            continue
        x, y = (x - grid.x_m[0]) / grid.x_m[2] - 0.5, (y - grid.y_m[0]) / grid.y_m[2] - 0.5
        for i in (math.floor(y), math.floor(y) + 1):
            for j in (math.floor(x), math.floor(x) + 1):
                if 0 <= i < ny and 0 <= j < nx:
                    weight = (1 - abs(x - j)) * (1 - abs(y - i))
                    out[b, :, i, j] += weight * depth[at].item() * context[b, n, :, h, w].double().numpy()
    return out


SMALL = BevGrid((-2.0, 2.0, 0.5), (-1.0, 2.0, 0.5), (-1.0, 1.0))


def bilinear_inputs(dtype):
    depth, context, _ = frustum(bins=4, columns=2, channels=3, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    points = (torch.rand(*depth.shape, 3, generator=generator) - 0.5) * torch.tensor([5.0, 5.0, 2.4])
    return depth, context, points.to(dtype)


def test_bilinear_against_a_loop():
    depth, context, points = bilinear_inputs(torch.float64)
    out = bev_pool_bilinear(depth, context, points, SMALL)
    assert error(out, bilinear_truth(depth, context, points, SMALL)) < 1e-6
    assert (
        error(
            bev_pool_bilinear(depth.float(), context.float(), points.float(), SMALL),
            bilinear_truth(depth, context, points, SMALL),
        )
        < 1e-5
    )


def test_bilinear_gradients_reach_positions():
    depth, context, points = bilinear_inputs(torch.float64)
    points = points.requires_grad_()
    inputs = depth.requires_grad_(), context.requires_grad_(), points
    assert torch.autograd.gradcheck(lambda d, c, p: bev_pool_bilinear(d, c, p, SMALL), inputs)
    bev_pool_bilinear(depth, context, points, SMALL).square().sum().backward()
    assert (points.grad[..., :2] != 0).any() and (points.grad[..., 2] == 0).all()


def test_bilinear_points_that_are_not_numbers_have_no_part_in_it():
    depth, context, points = bilinear_inputs(torch.float32)
    inside = depth.clone()
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        points[:, :, i], inside[:, :, i] = value, 0
    points.requires_grad_()
    out = bev_pool_bilinear(depth, context, points, SMALL)
    torch.testing.assert_close(out, bev_pool_bilinear(inside, context, points.detach().nan_to_num(0, 0, 0), SMALL))
    out.square().sum().backward()
    assert points.grad.isfinite().all() and (points.grad[:, :, :3] == 0).all() and (points.grad != 0).any()


def test_bilinear_at_cell_centres_is_the_plain_sum():
    depth, context, cells = frustum(batch=1, outside=0.0)
    ny, nx = GRID_SHAPE
    grid = BevGrid((0.0, float(nx), 1.0), (0.0, float(ny), 1.0), (-1.0, 1.0))
    points = torch.stack([cells % nx + 0.5, cells // nx + 0.5, torch.zeros_like(cells)], -1).float()
    plain = bev_pool(depth, context, index_of_cells(cells, GRID_SHAPE))
    torch.testing.assert_close(bev_pool_bilinear(depth, context, points, grid), plain, rtol=1e-5, atol=1e-5)


def test_inputs_that_do_not_fit_are_named():
    depth, context, cells = frustum()
    index = index_of_cells(cells, GRID_SHAPE)
    with pytest.raises(ValueError, match="the index is for"):
        bev_pool(depth[:, :1], context, index)
    with pytest.raises(ValueError, match="does not fit depth"):
        bev_pool(depth, context[..., :2], index)
    with pytest.raises(ValueError, match="floating point"):
        bev_pool(depth.int(), context, index)
    with pytest.raises(ValueError, match="out_dtype"):
        bev_pool(depth, context, index, out_dtype=torch.float16)
    with pytest.raises(ValueError, match="points_m"):
        bev_pool_bilinear(depth, context, torch.zeros(3), SMALL)
    with pytest.raises(ValueError, match="must be one of"):
        bev_pool(depth, context, index, "triton")
    with pytest.raises(ValueError, match="does not work on cpu"):
        bev_pool(depth, context, index, "cuda")


def test_switches(monkeypatch):
    monkeypatch.setattr(backends, "_chosen", None)
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    assert backends.resolve("auto", "cpu") == LIVE[0]
    other = LIVE[-2]  # "cpu" or "torch_scatter"
    with use_backend("torch"):
        assert backends.resolve("auto", "cpu") == "torch"
        assert backends.resolve(other, "cpu") == other
    monkeypatch.setenv(backends.ENVIRONMENT, other)
    assert backends.resolve("auto", "cpu") == other


def test_work_on_the_cpu_never_touches_the_gpu(monkeypatch):
    """Which would cost each data worker a CUDA context, and break those that are forked later."""
    monkeypatch.setattr(library, "cuda", lambda: pytest.fail("looked for a GPU"))
    assert backends.resolve("auto", "cpu") == LIVE[0]


def test_a_torch_scatter_of_another_torch_is_not_live(monkeypatch, tmp_path):
    (tmp_path / "torch_scatter.py").write_text("raise OSError('Could not load this library: x.so\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_scatter", raising=False)
    assert "not load (Could not load this library: x.so); compile" in backends._why_no_torch_scatter.__wrapped__(False)
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    assert backends._why_no_torch_scatter.__wrapped__(False) == "torch_scatter is not installed"


def test_without_the_library_one_warning_and_the_same_sums(monkeypatch):
    depth, context, cells = frustum()
    index, upstream = index_of_cells(cells, GRID_SHAPE), random_upstream(context)
    monkeypatch.setattr(library, "cpu", lambda: "switched off by a test")
    library.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="falls back to torch.*switched off by a test") as caught:
        for _ in range(3):
            out = bev_pool(depth, context, index)
    assert len([w for w in caught if "falls back" in str(w.message)]) == 1
    assert error(out, truth(depth, context, cells)) <= 1e-6
    with pytest.raises(RuntimeError, match="not live: switched off"):
        bev_pool(depth, context, index, "cpu")
    assert upstream.shape == out.shape


def test_the_command_says_what_is_live():
    done = subprocess.run([sys.executable, "-m", "ext"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for name in BACKENDS:
        line = next(line for line in lines if line.startswith(f"{name:14s} "))
        assert (
            ("live on" in line and " ok" in line) if status()[name] is None else f"not live: {status()[name]}" in line
        )


@pytest.mark.cuda
def test_gpu_gives_the_bits_of_the_cpu():
    if status()["cuda"] is not None:
        pytest.skip(f"no CUDA backend: {status()['cuda']}")
    for channels, dtype in (
        (80, torch.float32),
        (83, torch.float32),
        (300, torch.float32),
        (80, torch.bfloat16),
        (136, torch.float16),
    ):
        depth, context, cells = frustum(bins=112, rows=8, columns=22, channels=channels, dtype=dtype)
        cells[cells % 5 == 0] = 3
        index, upstream = index_of_cells(cells, GRID_SHAPE), random_upstream(context)
        expected = run(depth, context, cells, upstream, "cpu")
        for _ in range(100):
            inputs = depth.cuda().requires_grad_(), context.cuda().requires_grad_()
            out = bev_pool(*inputs, index.to("cuda"), "cuda")
            results = out, *torch.autograd.grad(out, inputs, upstream.cuda())
            assert all((a.cpu() == b).all() for a, b in zip(results, expected))


@pytest.mark.cuda
def test_gpu_calls_can_be_captured_in_a_graph():
    if status()["cuda"] is not None:
        pytest.skip(f"no CUDA backend: {status()['cuda']}")
    depth, context, cells = frustum(channels=80)
    depth, context, index = depth.cuda(), context.cuda(), index_of_cells(cells, GRID_SHAPE).to("cuda")
    expected = bev_pool(depth, context, index, "cuda").clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = bev_pool(depth, context, index, "cuda")
    out.zero_()
    graph.replay()
    assert (out == expected).all()


def test_exports():
    assert all(hasattr(ext, name) for name in ext.__all__)
    assert ctypes.sizeof(ctypes.c_int) == 4
