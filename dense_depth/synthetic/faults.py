"""What the tables say wrongly on demand, to test what detects or repairs it. Images, points and truth stay right."""

from dataclasses import dataclass

import numpy as np

from dense_depth.geometry import SE3, rotation_from_quaternion, se3


@dataclass(frozen=True)
class Faults:
    """Errors of the recorded poses, times and calibration."""

    flat_height: bool = False
    """Ego poses without height, as nuScenes'; roll and pitch are real."""
    planar_poses: bool = False
    """Ego poses without height, roll and pitch."""
    pose_noise_m: float = 0.0
    """Standard deviation of each ego position, per axis."""
    pose_noise_deg: float = 0.0
    """Standard deviation of each ego orientation, per axis."""
    pose_drift_mps: float = 0.0
    """Speed at which ego positions drift away, in a direction of its own for each scene."""
    clock_offset_ms: float = 0.0
    """How much the cameras' clock is ahead of the LiDAR's; images get the pose of the wrong time."""
    calibration_error_m: float = 0.0
    """How far each camera's mount is off, in a random direction."""
    calibration_error_deg: float = 0.0
    """By what angle each camera's mount is turned, about a random axis."""
    annotation_noise_m: float = 0.0
    """Standard deviation of the place of each annotated box, per axis."""
    annotation_noise_deg: float = 0.0
    """Standard deviation of the heading of each annotated box."""
    missing_sweeps: float = 0.0
    """Share of the sweeps between keyframes that are neither in the tables nor on disk."""


def recorded_pose(world_SE3_ego: SE3, time_s: float, faults: Faults, seed: tuple[int, ...]) -> SE3:
    """The ego pose of a scene as the tables have it.

    Args:
        world_SE3_ego: The true one.
        time_s: Time since the start of the scene.
        faults: What is wrong.
        seed: The scene (two numbers), then what names the record: the same record gets the same noise.
    """
    rotation, position_m = world_SE3_ego[:3, :3], world_SE3_ego[:3, 3].copy()
    if faults.pose_drift_mps:
        heading = np.random.default_rng([*seed[:2], 1]).uniform(0, 2 * np.pi)
        position_m[:2] += faults.pose_drift_mps * time_s * np.array([np.cos(heading), np.sin(heading)])
    if faults.pose_noise_m or faults.pose_noise_deg:
        rng = np.random.default_rng([*seed, 2])
        position_m += faults.pose_noise_m * rng.standard_normal(3)
        rotation = rotation @ turn(np.radians(faults.pose_noise_deg) * rng.standard_normal(3))
    if faults.flat_height or faults.planar_poses:
        position_m[2] = 0.0
    if faults.planar_poses:
        forward = rotation[:2, 0] / np.linalg.norm(rotation[:2, 0])
        rotation = np.array([[forward[0], -forward[1], 0.0], [forward[1], forward[0], 0.0], [0.0, 0.0, 1.0]])
    return se3(rotation, position_m)


def recorded_mount(ego_SE3_cam: SE3, faults: Faults, seed: tuple[int, ...]) -> SE3:
    """The mount of a camera as the tables have it; ``seed`` names the camera."""
    rng = np.random.default_rng([*seed, 3])
    shift, axis = rng.standard_normal((2, 3))
    shift, axis = shift / np.linalg.norm(shift), axis / np.linalg.norm(axis)
    error = se3(turn(np.radians(faults.calibration_error_deg) * axis), faults.calibration_error_m * shift)
    return ego_SE3_cam @ error


def annotated_box(ego_SE3_box: SE3, faults: Faults, seed: tuple[int, ...]) -> SE3:
    """The pose of a box as its annotator draws it; ``seed`` names the object and the keyframe."""
    if not (faults.annotation_noise_m or faults.annotation_noise_deg):
        return ego_SE3_box
    rng = np.random.default_rng([*seed, 5])
    shift, yaw = faults.annotation_noise_m * rng.standard_normal(3), rng.standard_normal()
    return ego_SE3_box @ se3(turn(np.array([0.0, 0.0, np.radians(faults.annotation_noise_deg) * yaw])), shift)


def turn(rotation_vector: np.ndarray) -> np.ndarray:
    """Rotation matrix of an axis times an angle in radians."""
    angle = np.linalg.norm(rotation_vector)
    half = 0.5 * np.sinc(angle / (2 * np.pi)) * np.asarray(rotation_vector)  # sin(angle / 2) times the axis
    return rotation_from_quaternion(np.array([np.cos(angle / 2), *half]))
