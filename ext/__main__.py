"""``python -m ext``: which backends of BEV pooling are live, why others are not, and whether they compute the truth."""

import sys

import torch

from ext import backends, bev_pool, build, reference
from ext.index import BevGrid, build_index

# For fp16 and bf16, one rounding of a gradient.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def main() -> int:
    """Prints one line per backend; returns 1 if a live one is wrong."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), instruction set {build.instruction_set()}")
    wrong = False
    for name, reason in backends.status().items():
        if reason:
            print(f"{name:14s} not live: {reason}")
            continue
        for device in (d for d in ("cpu", "cuda") if name in backends.PREFERRED[d]):
            if device == "cuda" and not torch.cuda.is_available():
                continue
            if reason := backends.why_not(name, device):
                print(f"{name:14s} not live on {device}: {reason}")
                continue
            errors = {dtype: check(name, device, dtype) for dtype in TOLERANCE}
            ok = all(error <= TOLERANCE[dtype] for dtype, error in errors.items())
            wrong |= not ok
            shown = ", ".join(f"{str(dtype)[6:]} {error:.1e}" for dtype, error in errors.items())
            print(f"{name:14s} live on {device}: {'ok' if ok else 'WRONG'}, largest error against float64: {shown}")
    return int(wrong)


def check(backend: str, device: str, dtype: torch.dtype) -> float:
    """Largest error of sums and gradients against the float64 definition, as a part of the largest value."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 24, 8, 12, 3, generator=generator) * torch.tensor([8.0, 8.0, 1.0])
    idx = build_index(points, BevGrid((0, 6.4, 0.8), (0, 6.4, 0.8), (0, 1)))
    depth = torch.rand(2, 2, 24, 8, 12, generator=generator).to(dtype)
    context = torch.randn(2, 2, 40, 8, 12, generator=generator).to(dtype)
    upstream = torch.randn(2, 40, 8, 8, generator=generator).to(dtype)
    depth, context = (t.to(device).requires_grad_() for t in (depth, context))
    out = bev_pool(depth, context, idx.to(device), backend)
    results = [out, *torch.autograd.grad(out, (depth, context), upstream.to(device))]
    exact = [t.detach().cpu().double().requires_grad_() for t in (depth, context)]
    rows = exact[1].permute(0, 1, 3, 4, 2).reshape(2, -1, 40)
    truth = reference.pool(exact[0].view(2, -1), rows, idx.start, idx.point, idx.pixel)
    truth = truth.view(2, 8, 8, 40).permute(0, 3, 1, 2)
    truths = [truth, *torch.autograd.grad(truth, exact, upstream.double())]
    pairs = [(a.detach().cpu(), b.detach()) for a, b in zip(results, truths, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())
