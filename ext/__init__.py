"""BEV pooling: lift-splat as one fused operator, with the same bits every run.

from ext import BevGrid, bev_pool, build_index
index = build_index(points_m, BevGrid())  # frustum points (cameras, bins, rows, columns, 3), once per calibration
bev = bev_pool(depth, context, index)  # (batch, channels, y, x)

``python -m ext`` says which backends are live, and checks them.
"""

from ext.backends import BACKENDS, status, use_backend
from ext.index import BevGrid, BevIndex, IndexCache, build_index, index_of_cells
from ext.pooling import bev_pool, bev_pool_bilinear

__all__ = [
    "BACKENDS",
    "BevGrid",
    "BevIndex",
    "IndexCache",
    "bev_pool",
    "bev_pool_bilinear",
    "build_index",
    "index_of_cells",
    "status",
    "use_backend",
]
