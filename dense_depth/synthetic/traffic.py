"""Who is in a generated scene and how they move."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dense_depth.geometry import SE3
from dense_depth.synthetic.body import Body
from dense_depth.synthetic.mesh import Mesh, merge
from dense_depth.synthetic.street import Path

STOPPED_MPS = 0.1

Profile = Callable[[float], float]  # time in seconds to distance in metres


@dataclass(frozen=True)
class Actor:
    """An annotated object.

    Attributes:
        name: Unique in the scene.
        body: What it looks like, and its box.
        pose: World pose of the floor point of its box at a travelled distance, for a height above it.
        travelled: Distance at a time in seconds from the first keyframe.
        moves: Whether it moves at some time in the scene.
    """

    name: str
    body: Body
    pose: Callable[[float, float], SE3]
    travelled: Profile
    moves: bool

    def world_SE3_box(self, time_s: float) -> SE3:
        """Pose of the annotated box."""
        return self.pose(self.travelled(time_s), self.body.size_lwh_m[2] / 2)

    def world_SE3_parts(self, time_s: float) -> list[SE3]:
        """Poses of the parts of its body."""
        distance_m, world_SE3_box = self.travelled(time_s), self.world_SE3_box(time_s)
        own = [part.box_SE3_part for part in self.body.parts]
        return [world_SE3_box if pose is None else world_SE3_box @ pose(distance_m) for pose in own]

    def mesh(self, time_s: float) -> Mesh:
        """The object in the world frame."""
        return merge([part.mesh.moved(pose) for part, pose in zip(self.body.parts, self.world_SE3_parts(time_s))])

    def speed_mps(self, time_s: float) -> float:
        """Its speed."""
        return abs(self.travelled(time_s + 0.05) - self.travelled(time_s - 0.05)) / 0.1

    def attribute(self, time_s: float) -> str | None:
        """Its nuScenes attribute; static objects have none."""
        group, kind = self.body.category.split(".")[:2]
        runs = self.speed_mps(time_s) > STOPPED_MPS
        if group == "human":
            return "pedestrian.moving" if runs else "pedestrian.standing"
        if kind in ("bicycle", "motorcycle"):
            return "cycle.with_rider" if self.moves else "cycle.without_rider"
        if group == "vehicle":
            return "vehicle.moving" if runs else "vehicle.stopped" if self.moves else "vehicle.parked"
        return None


def standing(name: str, body: Body, world_SE3_floor: SE3) -> Actor:
    """Something that stays where it is."""

    def pose(distance_m: float, up_m: float) -> SE3:
        world_SE3_box = world_SE3_floor.copy()
        world_SE3_box[:3, 3] += up_m * world_SE3_floor[:3, 2]
        return world_SE3_box

    return Actor(name, body, pose, lambda time_s: 0.0, moves=False)


def moving(name: str, body: Body, path: Path, travelled: Profile) -> Actor:
    """Something that follows a path."""
    return Actor(name, body, path.pose, travelled, moves=True)


def steady(start_m: float, speed_mps: float) -> Profile:
    """A constant speed."""
    return lambda time_s: start_m + speed_mps * time_s


def varying(start_m: float, times_s: Float[np.ndarray, " n"], speeds_mps: Float[np.ndarray, " n"]) -> Profile:
    """Speeds that change linearly between given times; constant before the first and after the last."""
    grid = np.arange(-1.0, max(times_s[-1], 0.0) + 1.0, 0.01)
    speed = np.interp(grid, times_s, speeds_mps)
    distance = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * 0.01)])
    distance += start_m - np.interp(0.0, grid, distance)
    return lambda time_s: float(np.interp(time_s, grid, distance)) + speeds_mps[-1] * max(time_s - grid[-1], 0.0)
