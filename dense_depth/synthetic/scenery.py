"""Street furniture: poles, signs, fences and the like, cones and barriers.

What is not annotated is a ``Mesh`` that stands on z = 0: x along the street, the road in the direction of -y, where
lamps reach. Traffic lights and signs face x, from where the traffic on their side of the road comes.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from dense_depth.geometry import se3
from dense_depth.synthetic.body import Body, Part
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Colour, Mesh, Vector, block, flanks, loft, merge, patches, pick, polygons, tube

POLES = [(108, 112, 114), (64, 72, 70), (52, 54, 58), (140, 142, 142)]
TIMBERS = [(140, 104, 68), (116, 90, 66), (158, 130, 92)]
DARK, GREY, WHITE, PANE = (40, 42, 44), (150, 150, 146), (232, 232, 228), (70, 84, 88)
RED, BLUE, YELLOW, ORANGE = (196, 30, 34), (28, 78, 160), (240, 196, 30), (232, 96, 24)
POSTERS = [(210, 120, 90), (110, 160, 200), (220, 200, 120)]
# Corners, turn of the first one from below, radius, border and middle of the plate of a sign
SIGNS = (
    (12, 0.0, 0.32, RED, WHITE),
    (12, 0.0, 0.32, WHITE, BLUE),
    (3, np.pi, 0.46, RED, WHITE),
    (8, np.pi / 8, 0.36, WHITE, RED),
    (4, 0.0, 0.42, WHITE, YELLOW),
    (4, np.pi / 4, 0.42, WHITE, BLUE),
)


def traffic_cone(rng: np.random.Generator) -> Body:
    """An orange cone with a white band, movable_object.trafficcone."""
    colour = pick(rng, [ORANGE])
    meshes = [block((0.3, 0.3, 0.05), (0, 0, 0.025), DARK, Material.RUBBER)]
    colours, materials = (colour, WHITE, colour), (Material.PLASTIC, Material.STRIPES, Material.PLASTIC)
    for i, (low, high) in enumerate(pairwise((0.05, 0.27, 0.47, 0.7))):
        wide, narrow = (0.125 - 0.14 * (z - 0.05) for z in (low, high))
        meshes.append(tube((0, 0, low), (0, 0, high), wide, colours[i], materials[i], 6, narrow, closed=i == 2))
    return _boxed("movable_object.trafficcone", (0.4, 0.4, 0.75), meshes)


def barrier(rng: np.random.Generator) -> Body:
    """A barrier across x, movable_object.barrier: concrete or plastic, or planks on feet."""
    if rng.random() < 0.5:
        plastic = rng.random() < 0.5
        colour = pick(rng, [RED, ORANGE, WHITE] if plastic else [(176, 172, 164)])
        square = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)])
        levels = np.array([(0.2, 1.05, 0), (0.2, 1.05, 0.1), (0.11, 1.05, 0.36), (0.075, 1.05, 0.95)])
        sections = square * levels[:, None] + [0, 0, 1] * levels[:, None]
        sides = flanks(sections[2], sections[3])
        bands = [patches(sides[i], [(0.02, 0.98, 0.55, 0.85)]) for i in (1, 3)]
        meshes = [
            loft(sections, colour, Material.PLASTIC if plastic else Material.CONCRETE),
            polygons(np.concatenate(bands), RED, Material.STRIPES),
        ]
    else:
        lamp_y = rng.choice([-0.85, 0.85])
        meshes = [
            block((0.4, 0.16, 0.1), [(0, -0.85, 0.05), (0, 0.85, 0.05)], DARK, Material.RUBBER),
            block((0.05, 0.06, 0.75), [(0, -0.85, 0.475), (0, 0.85, 0.475)], GREY, Material.METAL),
            block((0.04, 2.1, 0.2), [(0.04, 0, 0.75), (0.04, 0, 0.4)], RED, Material.STRIPES),
            block((0.08, 0.14, 0.12), (-0.02, lamp_y, 0.89), YELLOW, Material.LAMP),
        ]
    return _boxed("movable_object.barrier", (0.5, 2.2, 1.0), meshes)


def lamp_post(rng: np.random.Generator) -> Mesh:
    """A lamp on a pole, over the road."""
    height, arm, colour = rng.uniform(5.5, 8.5), rng.uniform(0.8, 2.2), pick(rng, POLES)
    tip = np.array([0, -arm, height + 0.25])
    head = tip + [0, -0.25, 0]
    return merge(
        [
            tube((0, 0, -0.2), (0, 0, 0.9), 0.11, colour, Material.METAL, 8, closed=False),
            tube((0, 0, 0.9), (0, 0, height), 0.085, colour, Material.METAL, 8, 0.055),
            tube((0, 0, height - 0.05), tip, 0.045, colour, Material.METAL, 6, 0.035),
            block((0.28, 0.75, 0.12), head, colour, Material.METAL, (0.7, 0.8)),
            block((0.2, 0.5, 0.03), head - [0, 0, 0.07], (255, 246, 220), Material.LAMP),
        ]
    )


def traffic_light(rng: np.random.Generator) -> Mesh:
    """Traffic lights on a pole, some with more of them over the road."""
    shining, arm = int(rng.integers(3)), rng.random() < 0.5
    heads = [np.array([0.12, 0, 2.75])]
    meshes = []
    if arm:
        reach, height = rng.uniform(3.0, 4.5), rng.uniform(5.2, 5.8)
        heads.append(np.array([0.12, -reach, height]))
        meshes.append(tube((0, 0, height + 0.3), (0, -reach - 0.1, height + 0.3), 0.06, GREY, Material.METAL, 6, 0.045))
        meshes.append(tube((0, 0, -0.2), (0, 0, height + 0.4), 0.1, GREY, Material.METAL, 8, 0.07))
    else:
        meshes.append(tube((0, 0, -0.2), (0, 0, 3.3), 0.06, GREY, Material.METAL, 8))
    for head in heads:
        meshes.append(block((0.18, 0.32, 0.95), head, DARK, Material.PLASTIC))
        meshes.append(block((0.02, 0.56, 1.2), head - [0.1, 0, 0], DARK, Material.METAL))
        for i, lit in enumerate(((255, 40, 30), (255, 180, 30), (40, 240, 120))):
            lamp = np.array(lit) if i == shining else np.array(lit) // 5
            place = head + [0.1, 0, 0.3 - 0.3 * i]
            meshes.append(_plate(place, _regular(8, 0.11), lamp, Material.LAMP if i == shining else Material.PLASTIC))
    return merge(meshes)


def sign(rng: np.random.Generator) -> Mesh:
    """A traffic sign on a pole."""
    corners, turn, radius, border, middle = SIGNS[rng.integers(len(SIGNS))]
    pole, place = rng.uniform(0.03, 0.04), np.array([0.05, 0, 2.2 + radius])
    outline = _regular(corners, radius, turn)
    return merge(
        [
            tube((0, 0, -0.2), (0, 0, place[2] + 0.2), pole, GREY, Material.METAL, 6),
            _plate(place - [0.008, 0, 0], outline, GREY, Material.METAL),
            _plate(place, outline, border, Material.SIGN),
            _plate(place + [0.006, 0, 0], 0.78 * outline, middle, Material.SIGN),
        ]
    )


def fence(length_m: float, rng: np.random.Generator) -> Mesh:
    """Bars or boards along x, the middle of the fence at the origin."""
    bars, height = rng.random() < 0.5, rng.uniform(1.0, 1.5)
    colour = pick(rng, POLES if bars else [*TIMBERS, WHITE])
    material = Material.METAL if bars else Material.WOOD
    spans = max(round(length_m / 2.0), 1)
    along = np.array([1.0, 0, 0]) * np.linspace(-length_m / 2, length_m / 2, spans + 1)[:, None]
    half = np.array([length_m / 2, 0, 0])
    rails = np.array([(0, 0, 0.18), (0, 0, height - 0.12)])
    meshes = [
        block((0.08, 0.08, height + 0.25), along + [0, 0, height / 2 - 0.1], colour, material),
        tube(rails - half, rails + half, 0.025, colour, material, 4, closed=False),
    ]
    count = max(round(length_m / (0.14 if bars else 0.16)), 1)
    along = np.array([1.0, 0, 0]) * ((np.arange(count) + 0.5) / count * length_m - length_m / 2)[:, None]
    if bars:
        meshes.append(tube(along + [0, 0, 0.1], along + [0, 0, height], 0.012, colour, material, 3, closed=False))
    else:
        board = np.array(
            [(-0.05, -0.03, 0.08), (0.05, -0.03, 0.08), (0.05, -0.03, height - 0.04), (-0.05, -0.03, height - 0.04)]
        )
        board = np.insert(board, 3, (0, -0.03, height), axis=0)
        meshes.append(polygons(along[:, None] + board, colour, material))
    return merge(meshes)


def bollard(rng: np.random.Generator) -> Mesh:
    """A short post with a band."""
    radius, height, colour = rng.uniform(0.05, 0.1), rng.uniform(0.75, 1.05), pick(rng, [*POLES, YELLOW])
    return merge(
        [
            tube((0, 0, -0.2), (0, 0, height), radius, colour, Material.METAL, 8, 0.9 * radius),
            tube((0, 0, 0.75 * height), (0, 0, 0.9 * height), 1.05 * radius, WHITE, Material.SIGN, 8, closed=False),
        ]
    )


def bench(rng: np.random.Generator) -> Mesh:
    """A bench that faces the road."""
    length, colour = rng.uniform(1.5, 2.0), pick(rng, TIMBERS)
    slats = [(0, y, 0.45) for y in (-0.18, -0.03, 0.12)]
    legs = np.array([1.0, 0, 0]) * np.array([-0.4, 0.4])[:, None] * length
    back = np.array(
        [(-length / 2, 0.24, 0), (length / 2, 0.24, 0), (length / 2, 0.27, 0.13), (-length / 2, 0.27, 0.13)]
    )
    return merge(
        [
            block((length, 0.12, 0.04), slats, colour, Material.WOOD),
            polygons(np.stack([back + [0, 0, 0.55], back + [0, 0.04, 0.72]]), colour, Material.WOOD),
            block((0.06, 0.44, 0.5), legs + [0, -0.02, 0.18], DARK, Material.METAL),
            tube(legs + [0, 0.22, 0.4], legs + [0, 0.31, 0.88], 0.025, DARK, Material.METAL, 4),
        ]
    )


def litter_bin(rng: np.random.Generator) -> Mesh:
    """A litter bin, round or on wheels."""
    if rng.random() < 0.5:
        colour = pick(rng, [(52, 74, 58), (74, 76, 78), (196, 92, 30)])
        drum = tube((0, 0, -0.1), (0, 0, 0.8), 0.24, colour, Material.METAL, 8, 0.27)
        return merge(
            [
                drum,
                tube((0, 0, 0.88), (0, 0, 0.98), 0.29, DARK, Material.METAL, 8, 0.12),
                tube((0, 0, 0.8), (0, 0, 0.9), 0.2, DARK, Material.METAL, 6, closed=False),
            ]
        )
    colour = pick(rng, [(48, 50, 52), (46, 92, 60), (40, 76, 136), (220, 186, 40)])
    return merge(
        [
            block((0.5, 0.55, 0.9), (0, 0, 0.53), colour, Material.PLASTIC, (1.12, 1.15)),
            block((0.58, 0.68, 0.08), (0, 0, 1.02), colour - colour // 5, Material.PLASTIC, (0.9, 0.85)),
            tube((-0.26, 0.22, 0.1), (0.26, 0.22, 0.1), 0.1, DARK, Material.RUBBER, 8),
            block((0.5, 0.1, 0.2), (0, -0.2, 0.0), DARK, Material.PLASTIC),
        ]
    )


def bus_shelter(rng: np.random.Generator) -> Mesh:
    """A glass shelter that is open towards the road, with the sign of the stop."""
    length, colour = rng.uniform(3.2, 4.6), pick(rng, POLES)
    x = length / 2
    posts = np.array([(a * x, y, 0) for a in (-1, 1) for y in (-0.55, 0.65)])
    panes = np.linspace(-x, x, 4)
    walls = [
        [(a + 0.04, 0.65, 0.2), (b - 0.04, 0.65, 0.2), (b - 0.04, 0.65, 2.2), (a + 0.04, 0.65, 2.2)]
        for a, b in pairwise(panes)
    ]
    walls.append([(x, 0.6, 0.2), (x, -0.2, 0.2), (x, -0.2, 2.2), (x, 0.6, 2.2)])
    stop = np.array([x + 0.8, -0.5, 0])
    return merge(
        [
            tube(posts - [0, 0, 0.2], posts + [0, 0, 2.35], 0.045, colour, Material.METAL, 6, closed=False),
            polygons(np.array(walls), PANE, Material.GLASS),
            block((length + 0.4, 1.6, 0.12), (0, 0, 2.4), colour, Material.METAL),
            block((0.1, 1.0, 1.8), (-x, 0.05, 1.2), DARK, Material.METAL),
            block((0.12, 0.85, 1.6), (-x, 0.05, 1.2), pick(rng, POSTERS), Material.LAMP),
            block((0.6 * length, 0.35, 0.05), (0.1 * x, 0.4, 0.48), TIMBERS[0], Material.WOOD),
            block((0.05, 0.3, 0.6), [(-0.4 * x, 0.4, 0.16), (0.6 * x, 0.4, 0.16)], DARK, Material.METAL),
            tube(stop - [0, 0, 0.2], stop + [0, 0, 2.8], 0.035, GREY, Material.METAL, 6),
            _plate(stop + [0.045, 0, 2.5], _regular(12, 0.28), YELLOW, Material.SIGN),
        ]
    )


def _boxed(category: str, size_lwh_m: Vector, meshes: Sequence[Mesh]) -> Body:
    size = np.asarray(size_lwh_m)
    return Body(category, size, (Part(merge(meshes).moved(se3(np.eye(3), np.array([0, 0, -size[2] / 2])))),))


def _regular(corners: int, radius: float, turn: float = 0.0) -> Float[np.ndarray, "n 2"]:
    """A regular polygon, (y, z); its first corner is at ``turn`` from straight down."""
    angle = turn + np.arange(corners) * 2 * np.pi / corners
    return radius * np.column_stack([np.sin(angle), -np.cos(angle)])


def _plate(
    place_m: Float[np.ndarray, "3"], outline_m: Float[np.ndarray, "n 2"], colour: Colour, material: Material
) -> Mesh:
    """A plate that faces x."""
    corners = place_m + np.column_stack([np.zeros(len(outline_m)), outline_m])
    return polygons(corners[None], colour, material)
