"""New poses for the sweeps of a scene: cameras, boxes and keyframes go with them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from dense_depth.datasets.scene import Scene, Track, box_velocities
from dense_depth.geometry import SE3, interpolate, invert

# A camera whose mount seems to be farther from the usual one really is: its poses are not only noisy.
STEADY_M, STEADY_DEG = 0.5, 2.0


def placed(scene: Scene, world_SE3_sensor: Float[np.ndarray, "sweeps 4 4"]) -> Scene:
    """A scene with other poses of its sweeps.

    Cameras are mounted on the vehicle. Each goes where the new pose at its own time and its mount have it; the mount is
    the middle over all its frames, so errors of single camera poses go, too. Boxes and keyframes keep their place
    around the sensor at their time, because that is how they were annotated.
    """
    times_us = [sweep.timestamp_us for sweep in scene.sweeps]
    before, after = np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps]), world_SE3_sensor
    frames = []
    for camera in scene.cameras:
        of_camera = scene.frames_of(camera)
        mounts = np.stack(
            [invert(pose_at(times_us, before, frame.timestamp_us)) @ frame.world_SE3_cam for frame in of_camera]
        )
        for frame, mount in zip(of_camera, steadied(mounts)):
            frames.append(replace(frame, world_SE3_cam=pose_at(times_us, after, frame.timestamp_us) @ mount))
    annotated_us = {time_us for track in scene.tracks for time_us in track.times_us}
    annotated_us |= {keyframe.timestamp_us for keyframe in scene.keyframes}
    correction = {
        time_us: pose_at(times_us, after, time_us) @ invert(pose_at(times_us, before, time_us))
        for time_us in annotated_us
    }
    return replace(
        scene,
        sweeps=tuple(replace(sweep, world_SE3_sensor=pose) for sweep, pose in zip(scene.sweeps, after)),
        frames=tuple(frames),
        tracks=tuple(_moved(track, correction) for track in scene.tracks),
        keyframes=tuple(
            replace(keyframe, world_SE3_ego=correction[keyframe.timestamp_us] @ keyframe.world_SE3_ego)
            for keyframe in scene.keyframes
        ),
    )


def pose_at(times_us: Sequence[int], poses: Float[np.ndarray, "n 4 4"], time_us: int) -> SE3:
    """A pose of a trajectory at any time; before its start and after its end at constant velocity."""
    if len(times_us) == 1:
        return poses[0]
    right = int(np.clip(np.searchsorted(times_us, time_us), 1, len(times_us) - 1))
    gap_us = times_us[right] - times_us[right - 1]
    return interpolate(poses[right - 1], poses[right], (time_us - times_us[right - 1]) / gap_us)


def steadied(mounts: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
    """Mounts of one camera as seen at its frames: their middle, or what was seen where that is far from it."""
    middle = np.eye(4)
    left, _, right = np.linalg.svd(np.median(mounts[:, :3, :3], axis=0))
    middle[:3, :3] = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    middle[:3, 3] = np.median(mounts[:, :3, 3], axis=0)
    apart = invert(middle) @ mounts
    turn_deg = np.degrees(np.arccos(np.clip((np.trace(apart[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1)))
    is_near = (np.linalg.norm(apart[:, :3, 3], axis=1) < STEADY_M) & (turn_deg < STEADY_DEG)
    return np.where(is_near[:, None, None], middle, mounts)


def _moved(track: Track, correction: dict[int, SE3]) -> Track:
    """A track whose boxes were moved in the world, each by what its time says."""
    poses = [correction[box.timestamp_us] @ box.world_SE3_box for box in track.boxes]
    velocities = box_velocities(track.times_us, np.stack(poses)[:, :3, 3])
    boxes = (
        replace(box, world_SE3_box=pose, velocity_mps=None if box.velocity_mps is None else velocity)
        for box, pose, velocity in zip(track.boxes, poses, velocities)
    )
    return replace(track, boxes=tuple(boxes))
