"""Ground truth of detection, against nuscenes-devkit on the same files."""

from dataclasses import replace

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.eval.detection.constants import DETECTION_NAMES
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from dense_depth.datasets import DatasetConfig, open_dataset
from training.detection.boxes import CLASS_OF_CATEGORY, CLASSES, class_of, ground_truth

VERSION = "v1.0-synth"
NUSCENES_CATEGORIES = (  # all 23 of its general ones, and those of its LiDAR segmentation
    *("animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker"),
    *("human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller"),
    *("human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris", "noise"),
    *("movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack"),
    *("vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction"),
    *("vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer"),
    *("vehicle.truck", "flat.driveable_surface", "static.manmade", "static.other", "vehicle.ego"),
)


@pytest.fixture(scope="module")
def scenes(generated):
    return [*open_dataset(DatasetConfig("nuscenes", generated, VERSION)).scenes()]


def test_classes():
    assert sorted(CLASSES) == sorted(DETECTION_NAMES)
    assert set(CLASS_OF_CATEGORY.values()) == {*CLASSES} and all(name == name.lower() for name in CLASS_OF_CATEGORY)


@pytest.mark.parametrize("category", NUSCENES_CATEGORIES)
def test_nuscenes_categories_are_of_the_devkits_classes(category):
    assert class_of(category) == category_to_detection_name(category)


@pytest.mark.parametrize(
    ("category", "name"),
    [("Car", "car"), ("Van", "car"), ("Truck", "truck"), ("Pedestrian", "pedestrian"), ("Cyclist", "bicycle")]
    + [("Person (sitting)", "pedestrian"), ("person_sitting", "pedestrian"), ("Tram", None), ("Misc", None)],
)
def test_kitti_categories(category, name):
    assert class_of(category) == name


def test_ground_truth_equals_devkit(generated, scenes):
    """Boxes, classes, velocities and their order as of the devkit's own boxes, moved into the ego frame."""
    nusc = NuScenes(VERSION, str(generated), verbose=False)
    tilt = 0.0
    for scene in scenes:
        for keyframe in scene.keyframes:
            sample = nusc.get("sample", keyframe.sample_token)
            pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
            ego = Quaternion(pose["rotation"])
            expected, names = [], []
            for row in (nusc.get("sample_annotation", token) for token in sample["anns"]):
                if not row["num_lidar_pts"]:  # hidden for a moment: left out
                    continue
                velocity = nusc.box_velocity(row["token"])
                box = Box(row["translation"], row["size"], Quaternion(row["rotation"]), velocity=velocity)
                box.translate(-np.array(pose["translation"]))
                box.rotate(ego.inverse)
                width, length, height = box.wlh
                yaw = quaternion_yaw(box.orientation)
                expected.append([*box.center, length, width, height, yaw, *box.velocity[:2]])
                names.append(category_to_detection_name(row["category_name"]))
            tilt = max(tilt, np.abs(ego.rotation_matrix[2, :2]).max())
            (boxes, classes), world_SE3_ego = ground_truth(scene, keyframe)
            assert boxes.dtype == np.float32 and classes.dtype == np.int64
            np.testing.assert_allclose(boxes, expected, atol=1e-4)
            assert [CLASSES[i] for i in classes] == names
            np.testing.assert_allclose(world_SE3_ego[:3, 3], pose["translation"])
    assert tilt > 1e-3  # else nothing was asked of roll and pitch


def test_annotations_that_say_less(scenes):
    """No velocity. No LiDAR or radar point: left out, unless asked for. Points nobody counted. Another category."""
    scene, n = scenes[0], 0
    tracks = []
    for i, track in enumerate(scene.tracks):
        boxes = tuple(replace(box, velocity_mps=None, n_points=(0, 3, None)[i % 3]) for box in track.boxes)
        tracks.append(replace(track, boxes=boxes, category="animal" if i % 5 == 0 else track.category))
    told = replace(scene, tracks=tuple(tracks))
    for keyframe in scene.keyframes:
        known = ground_truth(scene, keyframe).boxes.boxes
        hit, everything = (ground_truth(told, keyframe, only_hit=only).boxes for only in (True, False))
        places = {track.token: i for i, track in enumerate(scene.tracks)}
        at = np.array([places[track.token] for track, _ in scene.boxes_of(keyframe)])
        assert np.isnan(everything.boxes[:, 7:]).all()
        np.testing.assert_array_equal(everything.boxes[:, :7], known[at % 5 != 0, :7])
        np.testing.assert_array_equal(hit.boxes[:, :7], known[(at % 5 != 0) & (at % 3 != 0), :7])
        n += len(hit.boxes)
    assert n > 20
    empty = replace(scene, tracks=(), keyframes=tuple(replace(k, track_tokens=()) for k in scene.keyframes))
    boxes, classes = ground_truth(empty, empty.keyframes[0]).boxes
    assert boxes.shape == (0, 9) and classes.shape == (0,)
