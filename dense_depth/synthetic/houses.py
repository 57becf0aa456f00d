"""Houses on z = 0: x along the street, the front at y = 0, the road in the direction of -y."""

from itertools import pairwise

import numpy as np
from jaxtyping import Float

from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Colour, Mesh, block, flanks, merge, patches, pick, polygons, prism, tube
from dense_depth.synthetic.shading import BAY_M, BELOW_M, STOREY_M

DOOR_M, PLINTH_M = 2.9, 0.4  # height of entrances and of the plinth

PLASTERS = [(214, 202, 176), (196, 186, 172), (206, 170, 130), (178, 186, 188), (188, 150, 128), (226, 220, 206)]
PLASTERS += [(160, 170, 150), (204, 186, 120)]
BRICKS = [(142, 84, 66), (158, 106, 80), (122, 76, 64), (168, 132, 104)]
STONES = [(168, 162, 150), (140, 136, 130), (190, 182, 166)]
TILES = [(128, 66, 50), (104, 62, 52), (78, 78, 82), (92, 84, 78)]
DOORS = [(62, 42, 34), (40, 70, 56), (120, 34, 34), (36, 52, 88), (150, 110, 70)]
ACCENTS = [(170, 40, 40), (30, 84, 70), (36, 64, 120), (220, 160, 40), (90, 40, 80), (50, 52, 56)]
DARK, PANE, RAIL = (44, 44, 46), (72, 84, 90), (62, 64, 68)


def building(width_m: float, depth_m: float, rng: np.random.Generator) -> Mesh:
    """A house of one to four storeys, its middle at x = 0 and its back at y = ``depth_m``."""
    storeys, brick, shop = (
        int(rng.choice([1, 2, 3, 4], p=[0.1, 0.35, 0.35, 0.2])),
        rng.random() < 0.4,
        rng.random() < 0.4,
    )
    wall, stone = pick(rng, BRICKS if brick else PLASTERS), pick(rng, STONES)
    top = STOREY_M * storeys + 0.2
    low, high = _plan(width_m, depth_m, 0.0, -BELOW_M), _plan(width_m, depth_m, 0.0, top)
    faces = flanks(low, high)
    bays = int(width_m // BAY_M)
    first = -bays * BAY_M / 2 + BAY_M / 2  # x of the middle of the first bay
    entrance = int(rng.integers(max(bays, 1)))
    meshes = [
        *(_walls(face, wall, stone if brick else wall, Material.BRICK if brick else Material.FACADE) for face in faces),
        _slab(width_m, depth_m, 0.05, (-BELOW_M, PLINTH_M), stone, Material.CONCRETE),
    ]
    if shop:
        meshes += _shop(rng, width_m, first + BAY_M * entrance if bays else 0.0)
    else:
        meshes += _door(rng, first + BAY_M * entrance if bays else 0.0, stone)
    if storeys > 1 and rng.random() < 0.6:
        meshes.append(_slab(width_m, depth_m, 0.08, (STOREY_M - 0.06, STOREY_M + 0.14), stone, Material.CONCRETE))
    if storeys > 1 and bays > 0 and rng.random() < 0.5:
        at = rng.choice(bays, size=min(bays, 2), replace=False)
        meshes.append(_balconies([(first + BAY_M * bay, STOREY_M * s) for bay in at for s in range(1, storeys)]))
    roof = (_flat, _gable, _mansard)[rng.choice(3, p=[0.3, 0.45, 0.25]) if storeys < 4 else 0]
    meshes += roof(rng, width_m, depth_m, top, wall, stone)
    side = rng.choice([-1, 1]) * (width_m / 2 - 0.15)
    meshes.append(tube((side, -0.07, 0), (side, -0.07, top), 0.05, RAIL, Material.METAL, 4, closed=False))
    return merge(meshes)


def _plan(width_m: float, depth_m: float, beyond_m: float, z: float) -> Float[np.ndarray, "4 3"]:
    """The outline of the house, or a larger one, counter-clockwise from the left end of the front."""
    x, front, back = width_m / 2 + beyond_m, -beyond_m, depth_m + beyond_m
    return np.array([(-x, front, z), (x, front, z), (x, back, z), (-x, back, z)])


def _slab(
    width_m: float, depth_m: float, beyond_m: float, z: tuple[float, float], colour: Colour, material: Material
) -> Mesh:
    """What runs around the house."""
    return prism(_plan(width_m, depth_m, beyond_m, z[0]), _plan(width_m, depth_m, beyond_m, z[1]), colour, material)


def _walls(face_m: Float[np.ndarray, "4 3"], colour: Colour, corner: Colour, material: Material) -> Mesh:
    """A side of the house: whole bays of windows between plain corners."""
    length = float(np.linalg.norm(face_m[1] - face_m[0]))
    edge = 0.5 - 0.5 * BAY_M * (length // BAY_M) / length
    meshes = []
    if edge < 0.5:
        meshes.append(polygons(patches(face_m, [(edge, 1 - edge, 0, 1)], 0.0), colour, material))
    if edge * length > 0.01:
        plain = patches(face_m, [(0, edge, 0, 1), (1 - edge, 1, 0, 1)], 0.0)
        meshes.append(polygons(plain, corner, Material.CONCRETE))
    return merge(meshes)


def _front(x: tuple[float, float], z: tuple[float, float], y: float) -> Float[np.ndarray, "4 3"]:
    """A rectangle parallel to the front."""
    return np.array([(x[0], y, z[0]), (x[1], y, z[0]), (x[1], y, z[1]), (x[0], y, z[1])])


def _door(rng: np.random.Generator, x: float, stone: Colour) -> list[Mesh]:
    """An entrance with a light above it, on a step."""
    leaf = _front((x - 0.65, x + 0.65), (0.15, 2.25), -0.25)
    light = _front((x - 0.65, x + 0.65), (2.3, 2.65), -0.25)
    return [
        block((2.3, 0.24, DOOR_M), (x, -0.12, DOOR_M / 2), stone, Material.CONCRETE),
        block((1.9, 0.5, 1.15), (x, -0.4, -0.425), stone, Material.CONCRETE),
        polygons(leaf[None], pick(rng, DOORS), Material.WOOD),
        polygons(light[None], PANE, Material.GLASS),
        block((2.4, 0.7, 0.12), (x, -0.4, DOOR_M), stone, Material.CONCRETE),
    ]


def _shop(rng: np.random.Generator, width_m: float, door_x: float) -> list[Mesh]:
    """A shop across the ground floor: panes, a door, a board with its name and maybe an awning."""
    colour, x = pick(rng, ACCENTS), width_m / 2 - 0.15
    door = (door_x - 0.5, door_x + 0.5)
    left, right = np.linspace(-x + 0.15, door[0] - 0.1, 3), np.linspace(door[1] + 0.1, x - 0.15, 3)
    panes = [
        _front((a + 0.04, b - 0.04), (0.55, 2.5), -0.16)
        for edges in (left, right)
        for a, b in pairwise(edges)
        if b - a > 0.2
    ]
    panes.append(_front(door, (0.25, 2.4), -0.16))
    meshes = [
        block((2 * x, 0.3, DOOR_M + 1.0), (0, 0.0, DOOR_M / 2 - 0.5), colour, Material.WOOD),
        polygons(np.stack(panes), PANE, Material.GLASS),
        block((1.6 * x, 0.12, 0.45), (0, -0.2, DOOR_M - 0.1), pick(rng, ACCENTS), Material.PLASTIC),
    ]
    if rng.random() < 0.6:
        out, cloth = rng.uniform(1.0, 1.5), pick(rng, ACCENTS)
        a, b = np.array([(-0.92 * x, -0.15, 2.85), (0.92 * x, -0.15, 2.85)])
        c, d = np.array([(0.92 * x, -out, 2.4), (-0.92 * x, -out, 2.4)])
        sheets = np.array([(d, c, b, a), (d - [0, 0, 0.22], c - [0, 0, 0.22], c, d)])
        meshes.append(polygons(sheets, cloth, Material.CLOTH if rng.random() < 0.5 else Material.STRIPES))
    return meshes


def _balconies(floors: list[tuple[float, float]]) -> Mesh:
    """Balconies at places (x, z): a slab, a glass front and a rail."""
    place = np.array([(x, -0.5, z + 0.06) for x, z in floors])
    corners = np.array([(-1.1, -0.5, 0), (-1.1, 0.5, 0), (1.1, -0.5, 0), (1.1, 0.5, 0)])
    a, b, c, d = (place + corner for corner in corners)
    panes = np.concatenate(
        [np.stack([p, q, q + [0, 0, 0.95], p + [0, 0, 0.95]], axis=1) for p, q in ((b, a), (a, c), (c, d))]
    )
    return merge(
        [
            block((2.2, 1.0, 0.16), place, (170, 168, 162), Material.CONCRETE),
            polygons(panes, PANE, Material.GLASS),
            tube(a + [0, 0, 1.0], c + [0, 0, 1.0], 0.03, RAIL, Material.METAL, 4, closed=False),
        ]
    )


def _flat(
    rng: np.random.Generator, width_m: float, depth_m: float, top: float, wall: Colour, stone: Colour
) -> list[Mesh]:
    """A flat roof behind a cornice, with a hut for the lift."""
    hut = (rng.uniform(-0.25, 0.25) * width_m, rng.uniform(0.5, 0.7) * depth_m, top + 1.2)
    return [
        _slab(width_m, depth_m, 0.25, (top - 0.1, top + 0.3), stone, Material.CONCRETE),
        _slab(width_m, depth_m, 0.05, (top + 0.3, top + 0.7), wall, Material.CONCRETE),
        block((2.5, 2.5, 1.4), hut, (150, 148, 142), Material.CONCRETE),
    ]


def _gable(
    rng: np.random.Generator, width_m: float, depth_m: float, top: float, wall: Colour, stone: Colour
) -> list[Mesh]:
    """A roof whose ridge runs along the street, with a chimney and maybe dormers."""
    rise, tiles = rng.uniform(0.3, 0.42) * depth_m, pick(rng, TILES)
    slope, eaves = 2 * rise / depth_m, 0.45
    profile = np.array(
        [(0, -eaves, top - slope * eaves), (0, depth_m + eaves, top - slope * eaves), (0, depth_m / 2, top + rise)]
    )
    ends = profile - [width_m / 2 + 0.1, 0, 0], profile + [width_m / 2 + 0.1, 0, 0]
    meshes = [
        prism(ends[0], ends[1], tiles, Material.ROOF, closed=False),
        polygons(np.stack(ends), wall, Material.CONCRETE),
        block((2 * ends[1][0, 0], 0.14, 0.14), (0, -eaves, top - slope * eaves), RAIL, Material.METAL),
        _chimney(rng, width_m, depth_m, top + rise),
    ]
    if rng.random() < 0.6:
        meshes += _dormers(width_m, (1.1, top + slope * 1.1), 1.9, wall, tiles)
    return meshes


def _mansard(
    rng: np.random.Generator, width_m: float, depth_m: float, top: float, wall: Colour, stone: Colour
) -> list[Mesh]:
    """A steep roof that is flat on top, with dormers."""
    tiles = pick(rng, TILES)
    return [
        _slab(width_m, depth_m, 0.25, (top - 0.15, top + 0.1), stone, Material.CONCRETE),
        prism(_plan(width_m, depth_m, 0.0, top + 0.1), _plan(width_m, depth_m, -1.2, top + 2.5), tiles, Material.ROOF),
        _chimney(rng, width_m, depth_m, top + 2.3),
        *_dormers(width_m, (0.35, top + 0.5), 1.6, wall, tiles),
    ]


def _chimney(rng: np.random.Generator, width_m: float, depth_m: float, top: float) -> Mesh:
    place = (rng.uniform(-0.35, 0.35) * width_m, depth_m * rng.uniform(0.45, 0.6), top)
    return block((0.6, 0.6, 2.0), place, pick(rng, BRICKS), Material.CONCRETE)


def _dormers(width_m: float, low: tuple[float, float], height: float, wall: Colour, tiles: Colour) -> list[Mesh]:
    """Windows in the roof at (y, z)."""
    y, z = low
    places = np.array([(x, y + 0.9, z + height / 2) for x in np.array([-0.25, 0.25]) * width_m])
    panes = np.stack([_front((x - 0.45, x + 0.45), (z + 0.35, z + height - 0.25), y - 0.01) for x in places[:, 0]])
    return [
        block((1.3, 1.8, height), places, wall, Material.CONCRETE),
        block((1.6, 2.1, 0.15), places + [0, 0, height / 2], tiles, Material.ROOF),
        polygons(panes, PANE, Material.GLASS),
    ]
