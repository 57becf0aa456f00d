"""New poses for the sweeps of a scene: cameras, boxes and keyframes go with them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from dense_depth.datasets.scene import CameraFrame, Scene, Track, box_velocities
from dense_depth.geometry import SE3, interpolate, invert


def placed(scene: Scene, world_SE3_sensor: Float[np.ndarray, "sweeps 4 4"]) -> Scene:
    """A scene with other poses of its sweeps.

    Cameras go where the new pose at their own time and their mount have them, so that errors of single camera poses go,
    too. Boxes and keyframes keep their place around the sensor at their time, because that is how they were annotated.
    """
    times_us = [sweep.timestamp_us for sweep in scene.sweeps]
    before, after = np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps]), world_SE3_sensor
    annotated_us = {time_us for track in scene.tracks for time_us in track.times_us}
    annotated_us |= {keyframe.timestamp_us for keyframe in scene.keyframes}
    correction = {
        time_us: pose_at(times_us, after, time_us) @ invert(pose_at(times_us, before, time_us))
        for time_us in annotated_us
    }
    return replace(
        scene,
        sweeps=tuple(replace(sweep, world_SE3_sensor=pose) for sweep, pose in zip(scene.sweeps, after)),
        frames=tuple(
            replace(frame, world_SE3_cam=_camera_pose(times_us, before, after, frame)) for frame in scene.frames
        ),
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


def _camera_pose(times_us: Sequence[int], before: np.ndarray, after: np.ndarray, frame: CameraFrame) -> SE3:
    mount = frame.sensor_SE3_cam
    if mount is None:
        mount = invert(pose_at(times_us, before, frame.timestamp_us)) @ frame.world_SE3_cam
    return pose_at(times_us, after, frame.timestamp_us) @ mount


def _moved(track: Track, correction: dict[int, SE3]) -> Track:
    """A track whose boxes were moved in the world, each by what its time says."""
    poses = [correction[box.timestamp_us] @ box.world_SE3_box for box in track.boxes]
    velocities = box_velocities(track.times_us, np.stack(poses)[:, :3, 3])
    boxes = (
        replace(box, world_SE3_box=pose, velocity_mps=None if box.velocity_mps is None else velocity)
        for box, pose, velocity in zip(track.boxes, poses, velocities)
    )
    return replace(track, boxes=tuple(boxes))
