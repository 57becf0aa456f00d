"""Boxes of nuScenes' ten detection classes: what a detector learns from and what it says.

Boxes live in the nominal ego frame of their keyframe, x forward, y left, z up: the ego pose at the time of the key
sweep, from which nuScenes' evaluation also measures range. (BEVDepth averages the poses of the six cameras.)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from dense_depth.datasets.scene import Keyframe, Scene
from dense_depth.geometry import SE3, invert, transform

TASKS = (  # of CenterPoint: classes of one task share a regression, and suppress each other
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
CLASSES = tuple(name for task in TASKS for name in task)
CLASS_OF_CATEGORY = {  # of a track, in small letters
    # nuScenes
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    # KITTI; nuScenes has no trams, its cars include vans, its bicycles their riders, its pedestrians those who sit
    "car": "car",
    "van": "car",
    "truck": "truck",
    "cyclist": "bicycle",
    "pedestrian": "pedestrian",
    "person": "pedestrian",
    "person_sitting": "pedestrian",
    "person (sitting)": "pedestrian",
}


class Boxes(NamedTuple):
    """The boxes of a keyframe in its nominal ego frame.

    Attributes:
        boxes: x, y, z of the box's middle and length, width, height in metres, yaw in radians, velocity along x and y
            in m/s, NaN where it is not known.
        classes: Index into ``CLASSES``.
    """

    boxes: Float32[np.ndarray, "n 9"]
    classes: Int64[np.ndarray, " n"]


class GroundTruth(NamedTuple):
    """The annotated boxes of a keyframe and its nominal ego pose."""

    boxes: Boxes
    world_SE3_ego: SE3


class Detections(NamedTuple):
    """Detected boxes and their scores in 0..1."""

    boxes: Boxes
    scores: Float32[np.ndarray, " n"]


def class_of(category: str) -> str | None:
    """The detection class of a track's category; None if it is of none of the ten."""
    return CLASS_OF_CATEGORY.get(category.lower())


def ground_truth(scene: Scene, keyframe: Keyframe, only_hit: bool = True) -> GroundTruth:
    """The annotated boxes of the detection classes of a keyframe, in the dataset's order of annotations.

    Args:
        scene: With tracks.
        keyframe: One of its keyframes.
        only_hit: Leave out boxes of which it is known that no LiDAR or radar point hit them, as the evaluation does.
    """
    found = [
        (CLASSES.index(name), box)
        for track, box in scene.boxes_of(keyframe)
        if (name := class_of(track.category)) is not None and not (only_hit and box.n_points == 0)
    ]
    classes = np.array([index for index, _ in found], dtype=np.int64)
    world_SE3_box = np.array([box.world_SE3_box for _, box in found]).reshape(-1, 4, 4)
    sizes_m = np.array([box.size_lwh_m for _, box in found]).reshape(-1, 3)
    unknown = np.full(3, np.nan)
    velocities = np.array([unknown if box.velocity_mps is None else box.velocity_mps for _, box in found]).reshape(
        -1, 3
    )

    ego_SE3_world = invert(keyframe.world_SE3_ego)
    centres = transform(ego_SE3_world, world_SE3_box[:, :3, 3])
    ahead = (ego_SE3_world[:3, :3] @ world_SE3_box[:, :3, :3])[..., 0]
    yaw = np.arctan2(ahead[:, 1], ahead[:, 0])
    velocities = velocities @ ego_SE3_world[:3, :3].T
    boxes = np.column_stack([centres, sizes_m, yaw, velocities[:, :2]]).astype(np.float32)
    return GroundTruth(Boxes(boxes, classes), keyframe.world_SE3_ego)
