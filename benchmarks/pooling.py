"""BEV pooling: ours against torch_scatter, index_add, the CSR product and LSS's cumulative sum.

One process, the same inputs, alternating, at the shapes of BEVDepth, BEVDet and BEVFusion; random features, depths of a
softmax, six level cameras. Peers get the index for free (cells sorted, out-of-range points dropped, all precomputed)
and pay for the gather they need. Medians; errors against float64 as a part of the largest value. Extra memory is what a
forward and backward pass holds at once beyond inputs and results, as torch's own allocator counts it.

On a machine with an NVIDIA GPU a second part follows: CUDA graphs, fp32 and bf16, and bytes over time.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "2")
os.environ["KINETO_LOG_LEVEL"] = "9"  # the profiler counts memory; its own messages are not wanted

import math
import statistics
import time
import warnings

import torch
import torch_scatter

from ext import BevGrid, BevIndex, bev_pool, build_index, status

SHAPES = {  # bins from, to and step (m), rows, columns, channels, BEV half-width and cell (m)
    "BEVDepth": ((2.0, 58.0, 0.5), 16, 44, 80, 51.2, 0.8),
    "BEVDet": ((1.0, 60.0, 1.0), 16, 44, 64, 51.2, 0.8),
    "BEVFusion": ((1.0, 60.0, 0.5), 32, 88, 80, 54.0, 0.3),
}
REPEATS = {"BEVDepth": 7, "BEVDet": 7, "BEVFusion": 5}


def main() -> None:
    warnings.filterwarnings("ignore", message="Sparse")
    live = [backend for backend, reason in status().items() if reason is None]
    print(f"torch {torch.__version__}; live backends: {', '.join(live)}")
    for name in SHAPES:
        on_cpu(name)
    if torch.cuda.is_available():
        on_gpu("BEVDepth")
    else:
        print("no NVIDIA GPU here: the GPU part is skipped")


def frustum_m(bins, rows, columns) -> torch.Tensor:
    """Points of six level cameras like those of nuScenes, 704x256 images: (6, bins, rows, columns, 3)."""
    depth = torch.arange(*bins)
    u, v = torch.linspace(0, 703, columns), torch.linspace(0, 255, rows)
    cameras = [(0, 1.7, 0.0), (55, 1.5, 0.5), (110, 1.0, 0.5), (180, 0.0, 0.0), (-110, 1.0, -0.5), (-55, 1.5, -0.5)]
    points = []
    for yaw_deg, x, y in cameras:
        focal = 356.0 if yaw_deg == 180 else 557.0
        z = depth[:, None, None].expand(-1, rows, columns)
        right, down = (u - 359.0) / focal * z, ((v - 76.0) / focal)[:, None] * z
        c, s = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
        points.append(torch.stack([x + c * z + s * right, y + s * z - c * right, 1.5 - down], -1))
    return torch.stack(points)


def make(name: str) -> tuple[torch.Tensor, torch.Tensor, BevIndex, torch.Tensor, BevGrid]:
    bins, rows, columns, channels, half, cell = SHAPES[name]
    grid = BevGrid((-half, half, cell), (-half, half, cell), (-10.0, 10.0) if name == "BEVFusion" else (-5.0, 3.0))
    points = frustum_m(bins, rows, columns)
    torch.manual_seed(0)
    depth = torch.randn(1, *points.shape[:-1]).softmax(2)
    context = torch.randn(1, 6, rows, columns, channels).permute(0, 1, 4, 2, 3)  # channels-last
    return depth, context, build_index(points, grid), points, grid


class Sums(torch.autograd.Function):
    """LSS's sum of sorted rows: a cumulative sum, and differences where the cell changes."""

    @staticmethod
    def forward(ctx, rows, cell):  # noqa: D102
        last = torch.ones(len(cell), dtype=torch.bool, device=cell.device)
        last[:-1] = cell[1:] != cell[:-1]
        sums = rows.cumsum(0)[last]
        ctx.save_for_backward(last.cumsum(0) - last.long())
        return torch.cat([sums[:1], sums[1:] - sums[:-1]]), cell[last]

    @staticmethod
    def backward(ctx, grad, _):  # noqa: D102
        return grad[ctx.saved_tensors[0]], None


def peers(index: BevIndex) -> dict:
    """Functions of flat depth (points) and context rows (pixels, channels)."""
    point, pixel, start = index.point.long(), index.pixel.long(), index.start.long()
    cells = len(start) - 1
    cell = torch.repeat_interleave(torch.arange(cells, device=start.device), start.diff())

    def lifted(depth, rows):
        return depth[point, None] * rows[pixel]

    def cumsum(depth, rows):
        sums, kept = Sums.apply(lifted(depth, rows), cell)
        return sums.new_zeros(cells, rows.shape[1]).index_put((kept,), sums)

    return {
        "LSS cumsum": cumsum,
        "index_add": lambda d, r: r.new_zeros(cells, r.shape[1]).index_add(0, cell, lifted(d, r)),
        "torch_scatter scatter": lambda d, r: torch_scatter.scatter(lifted(d, r), cell, 0, dim_size=cells),
        "torch_scatter segment_csr": lambda d, r: torch_scatter.segment_csr(lifted(d, r), start),
    }


def on_cpu(name: str) -> None:
    depth, context, index, points, grid = make(name)
    channels = context.shape[2]
    upstream = torch.randn(1, *grid.shape, channels).permute(0, 3, 1, 2)
    leaves = depth.requires_grad_(), context.requires_grad_()

    def flat(function):
        def pool():
            rows = context.permute(0, 1, 3, 4, 2).reshape(-1, channels)
            return function(depth.view(-1), rows).view(1, *grid.shape, channels).permute(0, 3, 1, 2)

        return pool

    contenders = {peer: flat(function) for peer, function in peers(index).items()}
    contenders["ours, torch (CSR)"] = lambda: bev_pool(depth, context, index, "torch")
    if status()["cpu"] is None:
        contenders["ours, cpu"] = lambda: bev_pool(depth, context, index, "cpu")
    exact = depth.detach().double().requires_grad_(), context.detach().double().requires_grad_()
    rows = exact[1].permute(0, 1, 3, 4, 2).reshape(-1, channels)
    truth = peers(index)["index_add"](exact[0].view(-1), rows).view(1, *grid.shape, channels).permute(0, 3, 1, 2)
    truths = [truth.detach(), *torch.autograd.grad(truth, exact, upstream.double())]
    truth = truths[0]

    forward_ms: dict[tuple[str, int], list[float]] = {}
    backward_ms: dict[tuple[str, int], list[float]] = {}
    build_ms: dict[int, list[float]] = {1: [], 2: []}
    errors, extra_mb = {}, {}
    for repeat in range(REPEATS[name] + 1):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for contender, pool in contenders.items():
                started = time.perf_counter()
                out = pool()
                between = time.perf_counter()
                grads = torch.autograd.grad(out, leaves, upstream)
                ended = time.perf_counter()
                if repeat:
                    forward_ms.setdefault((contender, threads), []).append(1e3 * (between - started))
                    backward_ms.setdefault((contender, threads), []).append(1e3 * (ended - between))
                else:
                    pairs = [(a.detach().double() - b, b) for a, b in zip((out, *grads), truths)]
                    errors[contender] = max(float(d.abs().max() / b.abs().max()) for d, b in pairs)
                    extra_mb[contender] = extra_memory_mb(lambda: torch.autograd.grad(pool(), leaves, upstream))  # noqa: B023
            started = time.perf_counter()
            build_index(points, grid)
            if repeat:
                build_ms[threads].append(1e3 * (time.perf_counter() - started))

    kept = len(index.point)
    print(f"\n{name}: {depth.numel()} points, {kept} inside, {channels} channels, {grid.shape} cells; lifted tensor "
          f"{kept * channels * 4 / 1e6:.0f} MB; index {statistics.median(build_ms[1]):.1f} / "
          f"{statistics.median(build_ms[2]):.1f} ms on 1 / 2 threads")  # fmt: skip
    base = {t: statistics.median(forward_ms["torch_scatter scatter", t]) for t in (1, 2)}
    base_backward = {t: statistics.median(backward_ms["torch_scatter scatter", t]) for t in (1, 2)}
    print(f"{'':26s} {'forward ms':>15s} {'scatter/x':>13s} {'backward ms':>15s} {'scatter/x':>13s} "
          f"{'error':>8s} {'extra MB':>9s}")  # fmt: skip
    for contender in contenders:
        f = {t: statistics.median(forward_ms[contender, t]) for t in (1, 2)}
        b = {t: statistics.median(backward_ms[contender, t]) for t in (1, 2)}
        print(f"{contender:26s} {f[1]:7.2f} {f[2]:7.2f} {base[1] / f[1]:6.1f} {base[2] / f[2]:6.1f} "
              f"{b[1]:7.2f} {b[2]:7.2f} {base_backward[1] / b[1]:6.1f} {base_backward[2] / b[2]:6.1f} "
              f"{errors[contender]:8.1e} {extra_mb[contender]:9.1f}")  # fmt: skip
    if status()["cpu"] is None:
        halves = [t.detach().bfloat16() for t in (depth, context)]
        rounded = [t.double() for t in halves]
        rows = rounded[1].permute(0, 1, 3, 4, 2).reshape(-1, channels)
        of_rounded = peers(index)["index_add"](rounded[0].view(-1), rows)
        of_rounded = of_rounded.view(1, *grid.shape, channels).permute(0, 3, 1, 2)
        both = bev_pool(halves[0], halves[1], index, "cpu")
        autocast = bev_pool(depth.detach(), halves[1], index, "cpu")
        cases = (autocast, truth), (both, truth), (both, of_rounded)
        errors_bf16 = [float((out.double() - t).abs().max() / t.abs().max()) for out, t in cases]
        bits = {bev_pool(depth, context, index, "cpu").detach().numpy().tobytes() for _ in range(20)}
        autocast_error, both_error, summing_error = errors_bf16
        print(f"ours: error with bf16 context {autocast_error:.1e}, with bf16 depth too {both_error:.1e}, of which "
              f"summing {summing_error:.1e}; {len(bits)} different result(s) in 20 runs")  # fmt: skip


def extra_memory_mb(run) -> float:
    """Most memory held at once beyond what is held before and after, from the allocator's record of one run."""
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        results = run()
    held, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return (peak - sum(result.untyped_storage().nbytes() for result in results)) / 1e6


def on_gpu(name: str) -> None:
    """Times with CUDA graphs, beside torch_scatter's, and the bytes that must move over the time taken."""
    depth, context, index, _, grid = make(name)
    index = index.to("cuda")
    upstream = torch.randn(1, *grid.shape, context.shape[2]).permute(0, 3, 1, 2)
    print(f"\n{torch.cuda.get_device_name()}, {name}: microseconds, CUDA graphs")
    for dtype in (torch.float32, torch.bfloat16):
        d, c = (t.detach().to("cuda", dtype).requires_grad_() for t in (depth, context))
        g, width = upstream.to("cuda", dtype), torch.finfo(dtype).bits // 8
        contenders = {}
        if status()["cuda"] is None:
            contenders["ours, cuda"] = lambda d=d, c=c, t=dtype: bev_pool(d, c, index, "cuda", t)
        rows = c.permute(0, 1, 3, 4, 2).reshape(-1, c.shape[2])
        for peer in ("torch_scatter scatter", "torch_scatter segment_csr"):
            function = peers(index)[peer]
            contenders[peer] = lambda d=d, rows=rows, f=function: (
                f(d.view(-1), rows).view(1, *grid.shape, -1).permute(0, 3, 1, 2)
            )
        kept, cells = len(index.point), math.prod(grid.shape)
        moved = kept * (width + 4) + (c.numel() + cells * c.shape[2]) * width
        for contender, pool in contenders.items():
            try:
                forward = graph_us(pool)
                both = graph_us(
                    lambda pool=pool, d=d, c=c, g=g: torch.autograd.grad(pool(), (d, c), g, retain_graph=True)
                )
            except RuntimeError as error:
                print(f"{contender:26s} {str(dtype)[6:]:9s} not measured: {str(error).splitlines()[0]}")
                continue
            print(f"{contender:26s} {str(dtype)[6:]:9s} forward {forward:7.1f}, forward + backward {both:7.1f}; "
                  f"compulsory {moved / 1e6:.1f} MB in the forward: {moved / forward / 1e6:.2f} TB/s")  # fmt: skip


def graph_us(run, replays: int = 200) -> float:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    graph.replay()
    events[0].record()
    for _ in range(replays):
        graph.replay()
    events[1].record()
    torch.cuda.synchronize()
    return 1e3 * events[0].elapsed_time(events[1]) / replays


if __name__ == "__main__":
    main()
