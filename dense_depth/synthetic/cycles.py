"""Bicycles and motorcycles, with gaps between their spokes and tubes. Built on the floor, z = 0, facing x."""

from dataclasses import replace
from functools import partial
from math import cos, pi, sin

import numpy as np
from jaxtyping import Float

from dense_depth.synthetic.body import Body
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Mesh, block, merge, pick, polygons, prism, tube
from dense_depth.synthetic.people import HELMETS, Pose, hinged, person, riding
from dense_depth.synthetic.vehicles import DARK, LIGHT, PLATE, STEEL, TAIL, TYRE, boxed

FRAMES = [(30, 30, 32), (168, 40, 40), (44, 92, 150), (200, 200, 196), (72, 120, 84), (214, 148, 48)]
TURN_M = 4.6  # travelled per turn of the pedals
ANKLE_M = (-0.09, 0.09)  # (x, z) of an ankle from its pedal


def bicycle(rng: np.random.Generator, rider: bool) -> Body:
    """A bicycle, vehicle.bicycle; its rider pedals."""
    who, colour = person(rng), pick(rng, FRAMES)
    who = replace(who, helmet=pick(rng, HELMETS) if rng.random() < 0.5 else None)
    radius_m, crank_m, grip_x = rng.uniform(0.32, 0.35), 0.17, rng.uniform(0.25, 0.33)
    rear, front, pedals = np.array([(-0.5, 0, radius_m), (0.54, 0, radius_m), (-0.08, 0, 0.29)])
    saddle = np.array([-0.26, 0, 0.2 + 0.455 * who.height_m])
    seat, head, stem = np.array([(-0.2, 0, 0.78), (0.4, 0, 0.72), (0.34, 0, 0.98)])
    grip = np.array([grip_x, 0.27, 1.04])
    bars = [(pedals, seat), (seat, saddle), (seat, head + [-0.02, 0, 0.1]), (pedals, head), (head, stem)]
    bars += [(a, b + [0, y, 0]) for a, b in ((pedals, rear), (seat, rear), (head, front)) for y in (0.05, -0.05)]
    frame = np.array([*bars, (stem, grip), (stem, grip * [1, -1, 1])])
    meshes = [
        *(_wheel(hub, radius_m, 0.022, spokes=8, turns=12) for hub in (rear, front)),
        tube(frame[:, 0], frame[:, 1], 0.018, colour, Material.PAINT, 3, closed=False),
        block((0.26, 0.15, 0.06), saddle + [0, 0, 0.02], DARK, Material.PLASTIC, (0.9, 0.6)),
        block((0.06, 0.06, 0.06), stem + [0.08, 0, -0.08], LIGHT, Material.LAMP),
    ]
    feet = np.array([(0, 0.12, crank_m), (0, -0.12, -crank_m)])
    inner = feet * [1, 0.5, 0]
    cranks = tube(inner, feet, 0.016, STEEL, Material.METAL, 3, closed=False)
    treads = feet[:, None] + np.array([(-0.05, -0.05, 0), (0.05, -0.05, 0), (0.05, 0.05, 0), (-0.05, 0.05, 0)])
    turning = partial(hinged, joint_m=pedals, angle=_wound)
    moving: list[tuple[Mesh, Pose]] = [(merge([cranks, polygons(treads, DARK, Material.PLASTIC)]), turning)]
    if rider:
        ankles = [partial(_ankle, axle_m=(pedals[0], pedals[2]), crank_m=crank) for crank in (crank_m, -crank_m)]
        trunk, legs = riding(who, saddle + [0, 0, 0.1], grip, rng.uniform(0.3, 0.6), ankles, 0.1)
        meshes.append(trunk)
        moving += legs
    return boxed("vehicle.bicycle", meshes, moving)


def motorcycle(rng: np.random.Generator, rider: bool) -> Body:
    """A motorcycle, vehicle.motorcycle."""
    who, colour = person(rng), pick(rng, FRAMES)
    who = replace(who, helmet=pick(rng, HELMETS))
    radius_m, base_m = rng.uniform(0.3, 0.33), rng.uniform(1.36, 1.5)
    rear, front = np.array([(-base_m / 2, 0, radius_m), (base_m / 2, 0, radius_m)])
    head, grip = np.array([base_m / 2 - 0.3, 0, 0.92]), np.array([base_m / 2 - 0.38, 0.34, 1.06])
    fork = [(head + [0, y, 0], front + [0, y, 0]) for y in (0.09, -0.09)]
    swing = [((-0.15, y, 0.45), rear + [0, y, 0]) for y in (0.1, -0.1)]
    down, stay = (head, (0.1, 0, 0.4)), ((-0.1, 0, 0.7), rear)
    frame = np.array([*fork, *swing, down, stay, (head, grip), (head, grip * [1, -1, 1])])
    meshes = [
        *(_wheel(hub, radius_m, 0.06, spokes=5, turns=10) for hub in (rear, front)),
        tube(frame[:, 0], frame[:, 1], 0.03, DARK, Material.METAL, 3, closed=False),
        tube((0.1, -0.16, 0.3), (-0.75, -0.18, 0.42), 0.05, STEEL, Material.METAL, 5),
        block((0.45, 0.3, 0.38), (0.05, 0, 0.46), STEEL, Material.METAL, (0.8, 0.8)),
        block((0.5, 0.28, 0.24), (0.14, 0, 0.8), colour, Material.PAINT, (0.8, 0.6)),
        block((0.66, 0.26, 0.1), (-0.4, 0, 0.8), DARK, Material.CLOTH, (0.95, 0.8)),
        block((0.3, 0.2, 0.12), (-0.75, 0, 0.84), colour, Material.PAINT, (0.8, 0.6)),
        block((0.1, 0.16, 0.16), head + [0.1, 0, 0.02], LIGHT, Material.LAMP),
        polygons(_across(-0.91, (0.74, 0.8), 0.08), TAIL, Material.LAMP),
        polygons(_across(-0.92, (0.52, 0.66), 0.1), PLATE, Material.SIGN),
    ]
    if rider:
        ankles = [partial(_fixed, place_m=(-0.12, 0.36))] * 2
        trunk, legs = riding(who, (-0.3, 0, 0.9), grip, rng.uniform(0.15, 0.45), ankles, 0.17)
        meshes += [trunk, *(mesh.moved(pose(0.0)) for mesh, pose in legs)]
    return boxed("vehicle.motorcycle", meshes)


def _wheel(hub_m: Float[np.ndarray, "3"], radius_m: float, half_m: float, spokes: int, turns: int) -> Mesh:
    """A tyre of three-sided bars around flat spokes."""
    radial = _radial(turns)
    tread, wall = hub_m + radius_m * radial, hub_m + (radius_m - 2 * half_m) * radial
    sections = np.stack([tread, wall + [0, half_m, 0], wall - [0, half_m, 0]], axis=1)
    radial = _radial(spokes)
    along = 0.3 * half_m * np.cross(radial, [0, 1, 0])
    ends = hub_m + (radius_m - 1.5 * half_m) * radial
    flat = np.stack([hub_m - 2 * along, hub_m + 2 * along, ends + along, ends - along], axis=1)
    tyre = prism(sections, np.roll(sections, -1, axis=0), TYRE, Material.RUBBER, closed=False)
    return merge([tyre, polygons(flat, STEEL, Material.METAL)])


def _radial(n: int) -> Float[np.ndarray, "n 3"]:
    """Directions in the xz plane, from straight down on."""
    turn = np.arange(n) * 2 * pi / n
    return np.column_stack([np.sin(turn), np.zeros(n), -np.cos(turn)])


def _across(x: float, z: tuple[float, float], half: float) -> Float[np.ndarray, "1 4 3"]:
    return np.array([[(x, half, z[0]), (x, -half, z[0]), (x, -half, z[1]), (x, half, z[1])]])


def _wound(distance_m: float) -> float:
    """Angle of the pedals, whose upper one goes ahead."""
    return -2 * pi * distance_m / TURN_M


def _ankle(distance_m: float, axle_m: tuple[float, float], crank_m: float) -> tuple[float, float]:
    """Place of the ankle of the foot on a pedal."""
    turn = 2 * pi * distance_m / TURN_M
    return axle_m[0] + crank_m * sin(turn) + ANKLE_M[0], axle_m[1] + crank_m * cos(turn) + ANKLE_M[1]


def _fixed(distance_m: float, place_m: tuple[float, float]) -> tuple[float, float]:
    return place_m
