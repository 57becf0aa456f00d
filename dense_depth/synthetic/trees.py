"""Trees, bushes and hedges on z = 0. A leaf stands for a cluster of leaves; there are gaps between them."""

import numpy as np
from jaxtyping import Float

from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Mesh, block, merge, pick, polygons, tube

GREENS = [(86, 118, 52), (70, 104, 50), (104, 128, 58), (92, 112, 66), (122, 132, 56)]
BARKS = [(92, 76, 60), (110, 98, 84), (76, 64, 54)]


def tree(rng: np.random.Generator) -> Mesh:
    """A tree of 5 to 11 m with a crown that lets about half of the light through."""
    height, radius = rng.uniform(5.5, 10.2), rng.uniform(1.9, 3.1)
    tall = np.clip(rng.uniform(0.95, 1.5) * radius, 0.24 * height, 0.36 * height)
    middle = np.array([0, 0, height - tall])
    bark = pick(rng, BARKS)
    thick = 0.02 * height + rng.uniform(0, 0.05)
    fork = np.array([*rng.uniform(-0.15, 0.15, 2), height - 1.75 * tall])
    lobes = int(rng.integers(5, 8))
    turn = rng.uniform(0, 2 * np.pi) + np.arange(lobes) * 2.4
    rise = np.linspace(-0.45, 0.5, lobes) + rng.uniform(-0.1, 0.1, lobes)
    out = 0.5 * np.sqrt(1 - np.abs(rise))
    places = middle + np.column_stack([radius * out * np.cos(turn), radius * out * np.sin(turn), tall * rise])
    reach = np.array([radius, radius, tall]) * rng.uniform(0.5, 0.62, lobes)[:, None]
    ends = fork + 0.75 * (places[:4] - fork)
    return merge(
        [
            tube((0, 0, -0.2), fork, thick, bark, Material.BARK, 7, 0.65 * thick, closed=False),
            tube(fork, ends, 0.5 * thick, bark, Material.BARK, 4, 0.15 * thick, closed=False),
            tube(fork, places[-1], 0.65 * thick, bark, Material.BARK, 5, 0.1 * thick, closed=False),
            _foliage(rng, places, reach, 420, 0.52 * np.pi * radius * tall),
        ]
    )


def bush(rng: np.random.Generator) -> Mesh:
    """A shrub of about a metre."""
    size = np.array([*rng.uniform(0.5, 0.9, 2), rng.uniform(0.4, 0.7)])
    places = size * np.array([(0, 0, 0.95), (0.4, 0.2, 0.7), (-0.4, 0.1, 0.75), (0, -0.4, 0.7)])
    return _foliage(rng, places, np.broadcast_to(0.6 * size, (4, 3)), 240, 1.8 * np.pi * size[0] * size[2])


def hedge(length_m: float, rng: np.random.Generator) -> Mesh:
    """A cut hedge along x, its middle at the origin."""
    width, height = rng.uniform(0.5, 0.9), rng.uniform(0.8, 1.7)
    lobes = max(int(length_m / 0.5), 1)
    places = np.zeros((lobes, 3))
    places[:, 0] = (np.arange(lobes) + 0.5) / lobes * length_m - length_m / 2
    places[:, 2] = height / 2
    reach = np.tile([0.75 * length_m / lobes, width / 2, height / 2], (lobes, 1))
    core = block((length_m, 0.6 * width, 0.85 * height), (0, 0, 0.425 * height), (46, 62, 34), Material.FOLIAGE)
    leaves = _foliage(rng, places, reach, 30 * lobes, 1.3 * length_m * height, cubic=True)
    return merge([core, leaves])


def _foliage(
    rng: np.random.Generator,
    places_m: Float[np.ndarray, "lobes 3"],
    reach_m: Float[np.ndarray, "lobes 3"],
    count: int,
    area_m2: float,
    cubic: bool = False,
) -> Mesh:
    """Leaves of all directions in ellipsoids, or boxes, around some places.

    Args:
        rng: Random numbers.
        places_m: Middles of the ellipsoids.
        reach_m: Their radii.
        count: Number of leaves.
        area_m2: What they would cover from any side if none hid another.
        cubic: Whether to fill boxes.
    """
    lobe = rng.permutation(np.arange(count) % len(places_m))
    away = rng.normal(size=(count, 3))
    away /= np.abs(away).max(axis=1, keepdims=True) if cubic else np.linalg.norm(away, axis=1, keepdims=True)
    depth = rng.uniform(0, 1, count) ** (1 / 6 if cubic else 1 / 2.5)  # leaves crowd at the surface
    middle = places_m[lobe] + reach_m[lobe] * away * depth[:, None]
    u = rng.normal(size=(count, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(u, rng.normal(size=(count, 3)))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    # Kites, which cover half of their area, thus about radius^2, on average over their directions.
    radius = np.sqrt(area_m2 / count) * rng.uniform(0.65, 1.35, count)
    long, wide = np.array([1.3, 0, -1.3, 0]), np.array([0, 0.78, 0, -0.78])
    shift = np.array([0, 1, 0, 1]) * rng.uniform(-0.5, 0.5, (count, 1))
    corners = (long + shift)[..., None] * u[:, None] + wide[:, None] * v[:, None]
    light = 0.75 + 0.3 * depth + 0.12 * away[:, 2] + rng.uniform(-0.12, 0.12, count)
    colours = pick(rng, GREENS) * light[:, None] + rng.integers(-8, 9, (count, 3))
    corners = middle[:, None] + radius[:, None, None] * corners
    corners[..., 2] -= np.minimum(corners[..., 2].min(axis=1, keepdims=True), 0)  # none below the ground
    return polygons(corners, np.clip(colours, 0, 255), Material.FOLIAGE)
