"""Pedestrians and riders: people whose limbs move with the distance they travel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import acos, atan2, cos, hypot, pi, sin

import numpy as np
from jaxtyping import Float, Int

from dense_depth.geometry import SE3, se3
from dense_depth.synthetic.body import BOX_MARGIN_M, Body, Part
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Colour, Mesh, Vector, merge, pick, prism, tube

STRIDE_M = 1.4  # a full cycle of both legs
SWING, KNEE_BEND = 0.27, 0.75  # radians
SKINS = [(226, 184, 156), (204, 158, 128), (160, 112, 84), (108, 76, 58)]
HAIRS = [(40, 32, 28), (72, 52, 38), (128, 96, 60), (150, 146, 140), (24, 22, 22)]
TOPS = [(42, 50, 74), (52, 52, 56), (150, 44, 44), (88, 104, 80), (196, 190, 178), (212, 148, 52), (72, 112, 150)]
TROUSERS = [(40, 46, 66), (34, 34, 38), (92, 84, 72), (70, 78, 96), (120, 110, 96)]
SHOES = [(30, 28, 28), (70, 52, 40), (200, 198, 194)]
HELMETS = [(222, 222, 218), (30, 30, 32), (176, 40, 36), (52, 88, 150)]

Angle = Callable[[float], float]  # of the distance travelled; positive swings forward what hangs down
Pose = Callable[[float], SE3]  # of the distance travelled
Point = Callable[[float], tuple[float, float]]  # (x, z) at a distance travelled


@dataclass(frozen=True)
class Person:
    """Height in metres and colours of a person; the methods give lengths and meshes."""

    height_m: float
    skin: Int[np.ndarray, "3"]
    hair: Int[np.ndarray, "3"]
    top: Int[np.ndarray, "3"]
    sleeve: Int[np.ndarray, "3"]  # of the forearm
    trousers: Int[np.ndarray, "3"]
    shoe: Int[np.ndarray, "3"]
    helmet: Colour | None = None

    @property
    def thigh_m(self) -> float:
        """From hip to knee."""
        return 0.245 * self.height_m

    @property
    def shin_m(self) -> float:
        """From knee to ankle."""
        return 0.235 * self.height_m

    @property
    def sole_m(self) -> float:
        """From knee to sole."""
        return 0.275 * self.height_m

    @property
    def torso_m(self) -> float:
        """From hip to shoulder."""
        return 0.295 * self.height_m

    @property
    def foot_m(self) -> tuple[float, float]:
        """Heel and toe, ahead of the ankle."""
        return -0.04 * self.height_m, 0.1 * self.height_m

    def torso(self) -> Mesh:
        """From hip (origin) to neck."""
        turn = np.arange(6) * pi / 3
        ring = np.column_stack([0.075 * np.cos(turn), 0.12 * np.sin(turn), np.zeros(6)])
        scales = np.array([(0.82, 0.82, 1), (1, 1, 1), (0.5, 0.35, 1)])[:, None]
        sections = ring * scales + np.array([(0, 0, -0.04), (0, 0, 0.25), (0, 0, 0.305)])[:, None]
        sections *= self.height_m
        return prism(sections[:-1], sections[1:], self.top, Material.CLOTH, closed=False)

    def head(self) -> Mesh:
        """Neck, head and hair or helmet, from the shoulders (origin) up to 0.185 of the height."""
        h = self.height_m
        places = h * np.array([(-0.005, 0, -0.02), (0.008, 0, 0.06), (0.008, 0, 0.13)])
        bare = self.helmet is None
        hair = self.hair if self.helmet is None else self.helmet
        radius_m = (0.053 if bare else 0.066) * h
        low, top = h * np.array([(-0.014, 0, 0.1), (-0.004, 0, 0.185)])
        return merge(
            [
                tube(places[0], places[1], 0.03 * h, self.skin, Material.SKIN, 5, 0.042 * h, False),
                tube(places[1], places[2], 0.042 * h, self.skin, Material.SKIN, 5, 0.05 * h, False),
                tube(low, top, radius_m, hair, Material.CLOTH if bare else Material.PLASTIC, 5, 0.68 * radius_m),
            ]
        )

    def thigh(self) -> Mesh:
        """Hangs from the hip (origin)."""
        h = self.height_m
        end = (0, 0, -self.thigh_m)
        return tube((0, 0, 0.02 * h), end, 0.055 * h, self.trousers, Material.CLOTH, 4, 0.038 * h, False)

    def shin(self) -> Mesh:
        """Hangs from the knee (origin), with the shoe."""
        h, (heel, toe) = self.height_m, self.foot_m
        leg = tube(
            (0, 0, 0.02 * h), (0, 0, -self.shin_m), 0.038 * h, self.trousers, Material.CLOTH, 4, 0.025 * h, False
        )
        side = np.array(
            [(heel, -0.025 * h, -self.sole_m), (toe, -0.025 * h, -self.sole_m), (0, -0.025 * h, -self.shin_m)]
        )
        return merge([leg, prism(side, side + [0, 0.05 * h, 0], self.shoe, Material.RUBBER)])

    def arm(self, shoulder_m: Vector, elbow_m: Vector, hand_m: Vector) -> Mesh:
        """An arm through given points."""
        h, wrist = self.height_m, np.asarray(elbow_m) + 0.8 * np.subtract(hand_m, elbow_m)
        cloth = Material.CLOTH if self.sleeve is self.top else Material.SKIN
        return merge(
            [
                tube(shoulder_m, elbow_m, 0.036 * h, self.top, Material.CLOTH, 3, 0.03 * h, False),
                tube(elbow_m, wrist, 0.03 * h, self.sleeve, cloth, 3, 0.022 * h, False),
                tube(wrist, hand_m, 0.022 * h, self.skin, Material.SKIN, 3, 0.026 * h, False),
            ]
        )

    def legs(self, hips_m: Sequence[Vector], angles: Sequence[tuple[Angle, Angle]]) -> list[tuple[Mesh, Pose]]:
        """Thigh and shin of each leg, by the angles of hip and knee."""
        thigh, shin = self.thigh(), self.shin()
        limbs: list[tuple[Mesh, Pose]] = []
        for hip_m, (hip, knee) in zip(hips_m, angles):
            upper = partial(hinged, joint_m=hip_m, angle=hip)
            lower = partial(hinged, joint_m=(0, 0, -self.thigh_m), angle=knee, parent=upper)
            limbs += [(thigh, upper), (shin, lower)]
        return limbs


def person(rng: np.random.Generator) -> Person:
    """A person of random height and colours."""
    top = pick(rng, TOPS)
    skin = pick(rng, SKINS)
    sleeve = skin if rng.random() < 0.3 else top
    height_m = float(np.clip(rng.normal(1.72, 0.09), 1.55, 1.93))
    return Person(height_m, skin, pick(rng, HAIRS), top, sleeve, pick(rng, TROUSERS), pick(rng, SHOES))


def hinged(distance_m: float, joint_m: Vector, angle: Angle, parent: Pose | None = None) -> SE3:
    """Pose of what turns in the xz plane about a joint given in the frame of its parent."""
    c, s = cos(angle(distance_m)), sin(angle(distance_m))
    pose = se3(np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]), np.asarray(joint_m, np.float64))
    return pose if parent is None else parent(distance_m) @ pose


def chained(distance_m: float, outer: Pose | SE3, inner: Pose) -> SE3:
    """Pose of what has the pose ``inner`` in a frame that stays or moves itself."""
    return (outer if isinstance(outer, np.ndarray) else outer(distance_m)) @ inner(distance_m)


def pedestrian(rng: np.random.Generator) -> Body:
    """A person who walks, human.pedestrian.adult."""
    who = person(rng)
    h = who.height_m
    size_lwh_m = h * np.array([0.474, 0.304, 1.02]) + BOX_MARGIN_M * np.array([2, 2, 1])  # all that a stride takes
    bend = rng.uniform(0.1, 0.5)
    heel, toe = who.foot_m
    soles = np.array([(heel, 0, -who.sole_m, 1), (toe, 0, -who.sole_m, 1)])
    hips = [(0.0, y * 0.05 * h, 0.0) for y in (1, -1)]
    angles = [(partial(_stride, phase=phase, swing=SWING), partial(_knee, phase=phase)) for phase in (0.0, pi)]
    legs = who.legs(hips, angles)
    origin_m = (0.0134 * h, 0.0, -size_lwh_m[2] / 2)
    trunk = partial(_standing, feet=(legs[1][1], legs[3][1]), soles=soles, origin_m=origin_m)
    parts = [Part(merge([who.torso(), who.head().moved(_at(0, 0, who.torso_m))]), trunk)]
    parts += [Part(mesh, partial(chained, outer=trunk, inner=pose)) for mesh, pose in legs]
    arm = who.arm((0, 0, 0), (0, 0, -0.17 * h), (0.16 * h * sin(bend), 0, -0.17 * h - 0.16 * h * cos(bend)))
    for y, phase in ((1, pi), (-1, 0.0)):
        swing = partial(_stride, phase=phase, swing=0.8 * SWING, middle=-0.25 * bend)
        shoulder = (0, y * 0.115 * h, who.torso_m - 0.035 * h)
        parts.append(Part(arm, partial(hinged, joint_m=shoulder, angle=swing, parent=trunk)))
    return Body("human.pedestrian.adult", size_lwh_m, tuple(parts))


def riding(
    who: Person,
    seat_m: Vector,
    grip_m: Vector,
    lean: float,
    ankles: Sequence[Point],
    ankle_y_m: float,
) -> tuple[Mesh, list[tuple[Mesh, Pose]]]:
    """A person on two wheels.

    Args:
        who: Who rides.
        seat_m: Between the hips.
        grip_m: The left hand; the right one is its mirror image.
        lean: How far the trunk leans forward in radians.
        ankles: Left and right.
        ankle_y_m: y of the left one.

    Returns:
        What does not move, and the legs with their poses; in the frame of the arguments.
    """
    h, seat = who.height_m, np.asarray(seat_m, np.float64)
    trunk = hinged(0.0, seat, partial(_constant, angle=-lean))
    shoulders = seat + who.torso_m * trunk[:3, 2]
    meshes = [who.torso().moved(trunk), who.head().moved(_at(*shoulders))]
    hips, angles = [], []
    for y, ankle in zip((1, -1), ankles):
        shoulder = shoulders + [0, y * 0.115 * h, -0.03 * h]
        hand = np.asarray(grip_m) * [1, y, 1]
        elbow = (shoulder + hand) / 2 + [-0.02 * h, y * 0.03 * h, -0.05 * h]
        meshes.append(who.arm(shoulder, elbow, hand))
        hips.append(seat + [0, y * ankle_y_m, 0])
        reach = partial(_reach, hip_m=(seat[0], seat[2]), lengths_m=(who.thigh_m, who.shin_m), ankle=ankle)
        angles.append((partial(reach, joint=0), partial(reach, joint=1)))
    return merge(meshes), who.legs(hips, angles)


def _at(x: float, y: float, z: float) -> SE3:
    return se3(np.eye(3), np.array([x, y, z]))


def _constant(distance_m: float, angle: float) -> float:
    return angle


def _stride(distance_m: float, phase: float, swing: float, middle: float = 0.0) -> float:
    """Angle of a thigh or an arm."""
    return middle + swing * cos(2 * pi * distance_m / STRIDE_M + phase)


def _knee(distance_m: float, phase: float) -> float:
    """Angle of a shin: stretched on the ground, bent on its way forward."""
    return -0.05 - KNEE_BEND * max(0.0, -sin(2 * pi * distance_m / STRIDE_M + phase)) ** 2


def _standing(distance_m: float, feet: Sequence[Pose], soles: Float[np.ndarray, "n 4"], origin_m: Vector) -> SE3:
    """Pose of a trunk whose lower sole touches the floor; the feet and soles are in its frame."""
    lowest = min((soles @ foot(distance_m)[2]).min() for foot in feet)
    return _at(origin_m[0], origin_m[1], origin_m[2] - lowest)


def _reach(
    distance_m: float, hip_m: tuple[float, float], lengths_m: tuple[float, float], ankle: Point, joint: int
) -> float:
    """Angle of the thigh (joint 0) or the shin (1) that brings an ankle to its place."""
    x, z = ankle(distance_m)
    x, z = x - hip_m[0], z - hip_m[1]
    thigh, shin = lengths_m
    far = min(hypot(x, z), 0.999 * (thigh + shin))
    at_hip = acos(max(-1.0, min(1.0, (thigh**2 + far**2 - shin**2) / (2 * thigh * far))))
    at_ankle = acos(max(-1.0, min(1.0, (shin**2 + far**2 - thigh**2) / (2 * shin * far))))
    return atan2(x, -z) + at_hip if joint == 0 else -at_hip - at_ankle
