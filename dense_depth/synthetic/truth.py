"""Writes the exact depth of every camera frame, which ``dense_depth.datasets.truth`` reads."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dense_depth.datasets.truth import ARRAYS


def rounded(depth_m: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Float32 rounded to 16 significant bits: the others are noise that does not compress."""
    return ((np.ascontiguousarray(depth_m).view(np.uint32) + np.uint32(128)) & np.uint32(0xFFFFFF00)).view(np.float32)


def create_truth(path: Path, shape: tuple[int, int, int], attributes: dict[str, Any]) -> dict[str, Any]:
    """Creates what `read_truth` opens, one chunk per frame, without frames."""
    import zarr
    from zarr.codecs import BloscCodec

    group = zarr.open_group(path, mode="w", attributes=attributes)
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    options: dict[str, Any] = {"compressors": codec, "config": {"write_empty_chunks": True}}
    return {
        name: group.create_array(name, shape=shape, chunks=(1, *shape[1:]), dtype=dtype, fill_value=fill, **options)
        for name, (dtype, fill) in ARRAYS.items()
    }
