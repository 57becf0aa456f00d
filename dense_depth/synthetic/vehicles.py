"""Cars, trucks, buses and trailers. They are built on the floor, z = 0, and face x."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from dense_depth.geometry import se3
from dense_depth.synthetic.body import BOX_MARGIN_M, Body, Part
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import (
    Colour,
    Mesh,
    block,
    circle,
    flanks,
    loft,
    merge,
    patches,
    pick,
    polygons,
    prism,
    tube,
)
from dense_depth.synthetic.people import Pose, chained

CARS = [(28, 30, 34), (230, 230, 228), (170, 174, 178), (96, 100, 106), (150, 28, 30), (32, 62, 118), (60, 84, 66)]
VANS = [(236, 236, 232), (200, 204, 206), (222, 178, 40), (44, 78, 130), (60, 62, 66)]
BUSES = [(196, 44, 40), (232, 186, 44), (44, 104, 164), (78, 148, 88), (236, 234, 226)]
CARGO = [(234, 234, 230), (206, 210, 212), (40, 84, 140), (176, 60, 44), (84, 118, 84)]
TYRE, RIM, DARK, STEEL, TIMBER = (26, 26, 28), (164, 166, 170), (36, 38, 40), (120, 122, 126), (150, 116, 76)
PANE, LIGHT, TAIL, PLATE = (60, 72, 78), (255, 250, 228), (206, 26, 24), (232, 232, 216)
RIGHT, FRONT, LEFT, REAR = 0, 2, 4, 6  # sides of a shell

Spans = Sequence[tuple[float, float, float, float]]  # left, right, low, high; from 0 to 1 across a face

# Ranges of length, width and height; from the length, x of the cabin at the waist (rear, front) and at the roof (rear,
# front); heights of bonnet and waist; side windows as spans of the cabin's right side, rear to front.
CAR_SHAPES: tuple[Any, ...] = (
    ((4.4, 4.9), (1.76, 1.88), (1.40, 1.48), (-0.37, 0.21, -0.21, 0.04), (0.72, 0.92), ((0.17, 0.5), (0.53, 0.92))),
    ((3.7, 4.3), (1.68, 1.82), (1.45, 1.55), (-0.48, 0.23, -0.37, 0.06), (0.78, 0.95), ((0.17, 0.5), (0.53, 0.92))),
    ((4.3, 4.9), (1.82, 1.96), (1.62, 1.80), (-0.48, 0.22, -0.42, 0.08), (0.92, 1.06), ((0.05, 0.5), (0.53, 0.94))),
    ((4.8, 5.6), (1.88, 2.02), (1.90, 2.25), (-0.49, 0.36, -0.47, 0.20), (0.98, 1.12), ((0.04, 0.6), (0.64, 0.93))),
)


def car(rng: np.random.Generator) -> Body:
    """A sedan, hatchback, SUV or van, vehicle.car."""
    kind = int(rng.choice(4, p=[0.3, 0.35, 0.2, 0.15]))
    lengths, widths, heights, cabin_x, (bonnet, waist), windows = CAR_SHAPES[kind]
    length, half, height = rng.uniform(*lengths), rng.uniform(*widths) / 2, rng.uniform(*heights)
    colour = pick(rng, VANS if kind == 3 else CARS)
    if kind == 3 and rng.random() < 0.5:  # for goods: glass in the front doors only
        windows = windows[1:]
    nose = length / 2
    rear, front, roof_rear, roof_front = np.array(cabin_x) * length
    sill = [(0.2, 0.04 - nose, nose - 0.06, half - 0.03), (0.36, -nose, nose, half)]
    hull = [sill[1], (0.55, -nose, nose, half), (bonnet, 0.02 - nose, nose - 0.1, half - 0.01)]
    hull.append((waist, 0.05 - nose, front + 0.05, half - 0.05))
    roof = (height, roof_rear, roof_front, half - 0.08 - 0.25 * (height - waist))
    lower, sections = shell(sill, 0.09), shell(hull, 0.09)
    cabin = shell([(waist - 0.01, rear, front, half - 0.07), roof], 0.07)
    low, middle, _ = flanks(sections[:-1], sections[1:])
    glazed = flanks(cabin[0], cabin[1])
    screens = [_both(glazed, [(*window, 0.12, 0.9) for window in windows]), patches(glazed[FRONT], [(0, 1, 0.1, 0.93)])]
    if len(windows) > 1:
        screens.append(patches(glazed[REAR], [(0.06, 0.94, 0.2, 0.9)]))
    plates = [patches(low[FRONT], [(0.35, 0.65, 0.2, 0.8)], 0.02), patches(middle[REAR], [(0.35, 0.65, 0.2, 0.6)])]
    radius_m = 0.31 if kind < 2 else 0.35
    return boxed(
        "vehicle.car",
        [
            prism(lower[0], lower[1], DARK, Material.PLASTIC, closed=False),
            loft(sections, colour, Material.PAINT),
            loft(cabin, colour, Material.PAINT),
            polygons(np.concatenate(screens), PANE, Material.GLASS),
            _panels(middle[FRONT], [(0, 0.2, 0.25, 0.8), (0.8, 1, 0.25, 0.8)], LIGHT, Material.LAMP),
            _panels(middle[REAR], [(0, 0.14, 0.3, 0.9), (0.86, 1, 0.3, 0.9)], TAIL, Material.LAMP),
            _panels(low[FRONT], [(0.1, 0.9, 0.1, 0.9)], DARK, Material.PLASTIC),
            polygons(np.concatenate(plates), PLATE, Material.SIGN),
            block((0.1, 0.16, 0.13), pair(front - 0.5, half - 0.08, waist + 0.08), colour, Material.PAINT),
            wheels([-0.29 * length, 0.31 * length], half, radius_m, 0.2, arch_m=radius_m + 0.06),
        ],
    )


def truck(rng: np.random.Generator) -> Body:
    """A cab with a box, or with an open bed and its load, vehicle.truck."""
    length, half, height = rng.uniform(6.2, 9.0), rng.uniform(1.15, 1.25), rng.uniform(2.9, 3.5)
    colour, cargo, covered = pick(rng, CARGO), pick(rng, CARGO), rng.random() < 0.65
    nose, cab_m, roof, bed = length / 2, rng.uniform(1.7, 2.1), rng.uniform(2.35, 2.7), 1.05
    rear, radius_m = nose - cab_m, rng.uniform(0.42, 0.5)
    levels = [(0.45, rear, nose, half - 0.02), (1.4, rear, nose, half - 0.02), (roof, rear, nose - 0.25, half - 0.08)]
    cab = shell(levels, 0.1)
    low, high = flanks(cab[:-1], cab[1:])
    body = (-nose, rear - 0.1)
    tail = _wall(-nose, half - 0.1, (0.55, 0.75))
    meshes = [
        loft(cab, colour, Material.PAINT),
        polygons(
            np.concatenate([_both(high, [(0.3, 0.95, 0.08, 0.8)]), patches(high[FRONT], [(0, 1, 0.05, 0.85)])]),
            PANE,
            Material.GLASS,
        ),
        _panels(low[FRONT], [(0.1, 0.9, 0.42, 0.82)], DARK, Material.PLASTIC),
        _panels(low[FRONT], [(0, 1, 0, 0.28)], STEEL, Material.PLASTIC),
        _panels(low[FRONT], [(0.02, 0.18, 0.06, 0.24), (0.82, 0.98, 0.06, 0.24)], LIGHT, Material.LAMP, 0.02),
        _panels(low[FRONT], [(0.38, 0.62, 0.06, 0.2)], PLATE, Material.SIGN, 0.02),
        block((length - cab_m, 0.9, 0.3), (-cab_m / 2, 0, bed - 0.2), DARK, Material.METAL),
        block((0.1, 2 * half - 0.1, 0.2), (0.05 - nose, 0, 0.65), DARK, Material.METAL),
        _panels(tail, [(0, 0.14, 0.1, 0.9), (0.86, 1, 0.1, 0.9)], TAIL, Material.LAMP),
        _panels(tail, [(0.4, 0.6, 0.1, 0.9)], PLATE, Material.SIGN),
        block((0.08, 0.12, 0.45), pair(nose - 0.2, half, 1.75), DARK, Material.PLASTIC),
        wheels([nose - 0.6 * cab_m, -0.27 * length], half, radius_m, 0.3, sides=9, arch_m=radius_m + 0.08),
    ]
    meshes += (_box if covered else _flatbed)(rng, body, half, bed, height, cargo)
    return boxed("vehicle.truck", meshes)


def bus(rng: np.random.Generator) -> Body:
    """A city bus with doors on its right, vehicle.bus.rigid."""
    length, half, height = rng.uniform(10.0, 12.4), rng.uniform(1.22, 1.28), rng.uniform(2.95, 3.2)
    colour, band = pick(rng, BUSES), pick(rng, BUSES)
    nose, bays = length / 2, int(rng.integers(6, 9))
    levels = [
        (0.3, 0.03 - nose, nose - 0.05, half),
        (0.9, -nose, nose, half),
        (height - 0.25, 0.05 - nose, nose - 0.12, half),
    ]
    sections = shell([*levels, (height, 0.25 - nose, nose - 0.35, half - 0.15)], 0.12)
    low, high, _ = flanks(sections[:-1], sections[1:])
    doors = [(0.4, 0.52), (0.87, 0.99)]
    edges = np.linspace(0.02, 0.99, bays + 1)
    windows = [(a + 0.005, b - 0.005, 0.1, 0.92) for a, b in pairwise(edges)]
    between = [window for window in windows if all(window[1] < a or window[0] > b for a, b in doors)]
    leaves = [(a + 0.004 + 0.5 * i * (b - a), a - 0.004 + 0.5 * (i + 1) * (b - a)) for a, b in doors for i in (0, 1)]
    panes = [patches(high[LEFT], windows), patches(high[RIGHT], between), patches(high[FRONT], [(0, 1, 0.02, 0.8)])]
    panes += [
        patches(high[REAR], [(0.1, 0.9, 0.4, 0.9)]),
        patches(high[RIGHT], [(*leaf, 0, 0.92) for leaf in leaves], 0.02),
    ]
    panes.append(patches(low[RIGHT], [(*leaf, 0.15, 1) for leaf in leaves], 0.02))
    return boxed(
        "vehicle.bus.rigid",
        [
            loft(sections, colour, Material.PAINT),
            polygons(_both(low, [(0, 1, 0.0, 0.4)], 0.004), band, Material.PAINT),
            _panels(high[RIGHT], [(*door, 0, 0.95) for door in doors], DARK, Material.PLASTIC),
            _panels(low[RIGHT], [(*door, 0.05, 1) for door in doors], DARK, Material.PLASTIC),
            polygons(np.concatenate(panes), PANE, Material.GLASS),
            _panels(high[FRONT], [(0.15, 0.85, 0.83, 0.97)], (255, 184, 60), Material.LAMP),
            _panels(low[FRONT], [(0.02, 0.16, 0.4, 0.75), (0.84, 0.98, 0.4, 0.75)], LIGHT, Material.LAMP),
            _panels(low[REAR], [(0, 0.1, 0.5, 0.9), (0.9, 1, 0.5, 0.9)], TAIL, Material.LAMP),
            polygons(
                np.concatenate([patches(low[i], [(0.38, 0.62, 0.3, 0.5)]) for i in (FRONT, REAR)]), PLATE, Material.SIGN
            ),
            block((2.6, 1.5, 0.2), (rng.uniform(-2, 1), 0, height + 0.1), (206, 206, 202), Material.PAINT),
            block((0.1, 0.12, 0.35), pair(nose + 0.05, half - 0.05, height - 0.7), DARK, Material.PLASTIC),
            wheels([-0.26 * length, 0.27 * length], half, 0.48, 0.3, arch_m=0.57),
        ],
    )


def trailer(rng: np.random.Generator) -> Body:
    """A box or a flat bed on two axles, with a drawbar, vehicle.trailer."""
    length, half, bed = rng.uniform(4.5, 8.5), rng.uniform(1.05, 1.25), rng.uniform(0.85, 1.05)
    height, colour, covered = rng.uniform(2.6, 3.4), pick(rng, CARGO), rng.random() < 0.5
    body, radius_m = (-length / 2, length / 2), rng.uniform(0.34, 0.4)
    tail, hitch_x = _wall(body[0], half, (bed - 0.25, bed)), body[1] + 1.4
    meshes = [
        block((length, 2 * half - 0.1, 0.25), (0, 0, bed - 0.125), DARK, Material.METAL),
        tube(pair(body[1] - 0.1, 0.7, bed - 0.15), (hitch_x, 0, 0.55), 0.05, STEEL, Material.METAL, 4),
        tube((hitch_x - 0.2, 0, 0), (hitch_x - 0.2, 0, 0.75), 0.04, STEEL, Material.METAL),
        _panels(tail, [(0.02, 0.14, 0.1, 0.9), (0.86, 0.98, 0.1, 0.9)], TAIL, Material.LAMP),
        _panels(tail, [(0.4, 0.6, 0.1, 0.7)], PLATE, Material.SIGN),
        wheels(np.array([-0.5, 0.4]) - 0.06 * length, half - 0.02, radius_m, 0.26),
    ]
    meshes += (_box if covered else _flatbed)(rng, body, half, bed, height, colour)
    return boxed("vehicle.trailer", meshes)


def boxed(category: str, meshes: Sequence[Mesh], moving: Sequence[tuple[Mesh, Pose]] = ()) -> Body:
    """A body whose box is as small as the margin allows.

    Args:
        category: nuScenes category.
        meshes: Those that do not move, on the floor.
        moving: Others with their poses on the same floor; they never reach further than these.
    """
    mesh = merge(meshes)
    low, high = mesh.corners_m.min(axis=(0, 1)), mesh.corners_m.max(axis=(0, 1))
    centre = (low + high) / 2 + [0, 0, BOX_MARGIN_M / 2]
    box_SE3_floor = se3(np.eye(3), -centre)
    parts = [Part(mesh.moved(box_SE3_floor))]
    parts += [Part(part, partial(chained, outer=box_SE3_floor, inner=pose)) for part, pose in moving]
    return Body(category, high - low + BOX_MARGIN_M * np.array([2, 2, 1]), tuple(parts))


def shell(levels: Sequence[tuple[float, float, float, float]], chamfer_m: float) -> Float[np.ndarray, "n 8 3"]:
    """Level rectangles with chamfered corners from their z, rear, front and half width."""
    z, rear, front, half = np.array(levels).T[..., None]
    x = np.where([0, 1, 1, 1, 1, 0, 0, 0], front, rear) + chamfer_m * np.array([1, -1, 0, 0, -1, 1, 0, 0])
    y = half * np.array([-1, -1, -1, 1, 1, 1, 1, -1]) + chamfer_m * np.array([0, 0, 1, -1, 0, 0, -1, 1])
    return np.stack([x, y, np.broadcast_to(z, x.shape)], axis=-1)


def _wall(x: float, half: float, z: tuple[float, float]) -> Float[np.ndarray, "4 3"]:
    """The rear end of a box."""
    return np.array([(x, half, z[0]), (x, -half, z[0]), (x, -half, z[1]), (x, half, z[1])])


def pair(x: float, y: float, z: float) -> Float[np.ndarray, "2 3"]:
    """A point on the left and its mirror image on the right."""
    return np.array([(x, y, z), (x, -y, z)])


def _panels(
    face_m: Float[np.ndarray, "4 3"], spans: Spans, colour: Colour, material: Material, out_m: float = 0.01
) -> Mesh:
    return polygons(patches(face_m, spans, out_m), colour, material)


def _both(faces_m: Float[np.ndarray, "8 4 3"], spans: Spans, out_m: float = 0.01) -> Float[np.ndarray, "n 4 3"]:
    """Patches on the right side of a shell, and their mirror images on the left one."""
    mirrored = [(1 - b, 1 - a, c, d) for a, b, c, d in spans]
    return np.concatenate([patches(faces_m[RIGHT], spans, out_m), patches(faces_m[LEFT], mirrored, out_m)])


def wheels(
    axles_m: Sequence[float] | Float[np.ndarray, " n"],
    half_m: float,
    radius_m: float,
    width_m: float,
    sides: int = 10,
    arch_m: float | None = None,
) -> Mesh:
    """Wheels on both sides, just outside ``half_m``; ``arch_m`` is the radius of the dark arches above them."""
    centre = np.array([(x, y, radius_m) for x in axles_m for y in (half_m, -half_m)])
    out = np.sign(centre) * [0, 1, 0]
    ring, rim = radius_m * circle((0, 1, 0), sides), 0.62 * radius_m * circle((0, 1, 0), 8)
    face = centre + 0.015 * out
    meshes = [
        tube(centre - width_m * out, face, radius_m, TYRE, Material.RUBBER, sides, closed=False),
        polygons(face[:, None] + ring, TYRE, Material.RUBBER),
        polygons((face + 0.01 * out)[:, None] + rim, RIM, Material.METAL),
    ]
    if arch_m is not None:
        turn = np.linspace(-0.15, np.pi + 0.15, 8)
        arch = arch_m * np.column_stack([np.cos(turn), np.zeros(8), np.sin(turn)])
        meshes.append(polygons((centre + 0.008 * out)[:, None] + arch, DARK, Material.PLASTIC))
    return merge(meshes)


def _box(
    rng: np.random.Generator, x: tuple[float, float], half: float, bed: float, height: float, colour: Colour
) -> list[Mesh]:
    """A closed body from x to x with doors at the rear."""
    doors = _wall(x[0], half, (bed, height))
    return [
        block((x[1] - x[0], 2 * half, height - bed), (sum(x) / 2, 0, (bed + height) / 2), colour, Material.PAINT),
        _panels(doors, [(0.49, 0.51, 0.02, 0.98), (0.02, 0.98, 0.0, 0.04)], DARK, Material.METAL),
    ]


def _flatbed(
    rng: np.random.Generator, x: tuple[float, float], half: float, bed: float, height: float, colour: Colour
) -> list[Mesh]:
    """An open bed with low boards and crates on it."""
    length, middle = x[1] - x[0], sum(x) / 2
    crates = int(rng.integers(2, 4))
    size = np.column_stack([rng.uniform(0.5, 0.9, crates) * length / crates, rng.uniform(1.2, 2, crates) * half * 0.9])
    size = np.column_stack([size, rng.uniform(0.3, 0.8, crates) * (height - bed)])
    places = x[0] + (np.arange(crates) + 0.5) / crates * length
    return [
        block((length, 2 * half, 0.12), (middle, 0, bed + 0.06), colour, Material.METAL),
        block((length, 0.05, 0.4), pair(middle, half - 0.03, bed + 0.3), colour, Material.METAL),
        block((0.06, 2 * half - 0.12, 0.9), (x[1] - 0.03, 0, bed + 0.55), colour, Material.METAL),
        block(size, np.column_stack([places, np.zeros(crates), bed + 0.12 + size[:, 2] / 2]), TIMBER, Material.WOOD),
    ]
