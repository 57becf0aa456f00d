"""Excavators and wheel loaders. They are built on the floor, z = 0, and face x."""

import numpy as np
from jaxtyping import Float

from dense_depth.synthetic.body import Body
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Colour, Mesh, block, flanks, loft, merge, patches, pick, polygons, prism, tube
from dense_depth.synthetic.vehicles import DARK, FRONT, LEFT, PANE, REAR, RIGHT, STEEL, boxed, pair, shell, wheels

PAINTS = [(232, 176, 32), (222, 140, 30)]


def construction(rng: np.random.Generator) -> Body:
    """An excavator or a wheel loader, vehicle.construction."""
    colour = pick(rng, PAINTS)
    return boxed("vehicle.construction", (_excavator if rng.random() < 0.5 else _loader)(rng, colour))


def _cab(rear: float, front: float, y: tuple[float, float], z: tuple[float, float], colour: Colour) -> list[Mesh]:
    """The cab of a digger: four glass sides between posts, and a roof."""
    middle, half = sum(y) / 2, (y[1] - y[0]) / 2
    outline = shell([(z[0], rear, front, half), (z[1], rear + 0.1, front - 0.15, half - 0.05)], 0.06) + [0, middle, 0]
    faces = flanks(outline[0], outline[1])
    panes = [patches(faces[i], [(0.05, 0.95, 0.3 if i != FRONT else 0.1, 0.93)]) for i in (RIGHT, FRONT, LEFT, REAR)]
    return [loft(outline, colour, Material.PAINT), polygons(np.concatenate(panes), PANE, Material.GLASS)]


def _bucket(profile_m: Float[np.ndarray, "k 3"], half: float) -> Mesh:
    """A scoop around a profile that is open from its last point to its first."""
    right, left = profile_m - [0, half, 0], profile_m + [0, half, 0]
    around = polygons(flanks(right, left)[:-1], STEEL, Material.METAL)
    return merge([around, polygons(np.stack([right, left]), STEEL, Material.METAL)])


def _excavator(rng: np.random.Generator, colour: Colour) -> list[Mesh]:
    """On tracks, with a boom of two members, an arm and a bucket."""
    reach, lift, half = rng.uniform(3.6, 4.6), rng.uniform(2.9, 3.6), 1.2
    track = np.array([(-1.6, 0, 0), (1.6, 0, 0), (1.95, 0, 0.4), (1.6, 0, 0.8), (-1.6, 0, 0.8), (-1.95, 0, 0.4)])
    inner = np.array([(0, -half, 0), (0, half - 0.5, 0)])[:, None]
    bend, tip, wrist = np.array([(0.6 * reach, 0, lift), (reach, 0, 0.85 * lift), (reach + 0.35, 0, 1.0)])
    joints = np.stack([(0.9, 0, 1.5), bend, tip, wrist])
    rams = np.array([[(1.2, 0, 1.2), bend + [0, 0, 0.22]], [bend + [-0.3, 0, -0.25], tip + [0.1, 0, 0.25]]])
    bucket = wrist + np.array([(-0.45, 0, -0.65), (-0.1, 0, -0.85), (0.3, 0, -0.6), (0.3, 0, -0.1), (0, 0, 0.1)])
    return [
        prism(track + inner, track + inner + [0, 0.5, 0], (44, 44, 46), Material.RUBBER),
        block((1.6, 1.4, 0.4), (0, 0, 0.75), DARK, Material.METAL),
        block((3.2, 2.3, 0.35), (-0.4, 0, 1.1), colour, Material.PAINT),
        block((1.9, 2.3, 0.85), (-1.1, 0, 1.7), colour, Material.PAINT, (0.9, 0.92)),
        block((0.3, 2.2, 0.9), (-2.15, 0, 1.5), DARK, Material.PAINT),
        *_cab(-0.15, 1.15, (0.15, 1.1), (1.25, 2.75), colour),
        tube(joints[:-1], joints[1:], 0.19, colour, Material.PAINT, 4),
        tube(rams[0], rams[1], 0.06, STEEL, Material.METAL, 4),
        _bucket(bucket, 0.5),
    ]


def _loader(rng: np.random.Generator, colour: Colour) -> list[Mesh]:
    """On four wheels, with two lifting arms and a bucket across the front."""
    half, radius_m, lift = rng.uniform(1.15, 1.3), rng.uniform(0.62, 0.75), rng.uniform(0.0, 1.4)
    edge = np.array([2.9, 0, 0.35 + lift])
    bucket = edge + np.array([(0.1, 0, 0.85), (-0.4, 0, 0.7), (-0.5, 0, 0.1), (-0.2, 0, -0.3), (0.75, 0, -0.35)])
    shoulder, wrist = pair(0.5, 0.5, 1.75), pair(edge[0] - 0.6, 0.5, edge[2] + 0.2)
    return [
        block((2.1, 1.5, 1.0), (-2.1, 0, 1.45), colour, Material.PAINT, (0.9, 0.9)),
        block((0.3, 1.7, 0.7), (-3.2, 0, 1.1), DARK, Material.PAINT),
        block((4.0, 0.9, 0.5), (-0.5, 0, 0.95), DARK, Material.METAL),
        block((0.6, 1.3, 0.9), (0.5, 0, 1.4), colour, Material.PAINT),
        *_cab(-1.1, 0.3, (-0.75, 0.75), (1.4, 3.2), colour),
        tube(shoulder, wrist, 0.13, colour, Material.PAINT, 4),
        tube((0.8, 0, 1.3), (edge[0] - 0.35, 0, edge[2] + 0.6), 0.07, STEEL, Material.METAL, 4),
        _bucket(bucket, half + 0.1),
        wheels([-1.9, 1.2], half - 0.02, radius_m, 0.5, sides=12),
    ]
