"""Keyframes for the detector: which there are, that they repeat, and where images, labels and boxes lie."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import changed
from nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from PIL import Image
from scipy.spatial import cKDTree

import pipelines.runner as runner
import training.detection.data as data_module
from dense_depth import InputError
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.geometry import invert, transform
from pipelines.accumulate import Arguments, plan
from training.detection.augmentation import AugmentationConfig
from training.detection.boxes import CLASSES, ground_truth
from training.detection.data import MEAN, STD, DataConfig, DetectionData, _read, collate

VERSION = "v1.0-synth"
SMALL = AugmentationConfig(64, 96, resize=(0.88, 1.41))  # of images of 400x225 pixels
HEIGHT, WIDTH = SMALL.height, SMALL.width


@pytest.fixture(scope="module")
def store(generated, tmp_path_factory):
    """Single sweeps, of the first scene alone, in half the size of the images."""
    path = tmp_path_factory.mktemp("detection") / "store"
    arguments = Arguments(
        DatasetConfig("nuscenes", generated, VERSION), str(path), ("synth-0000",), workers=0, scale=0.5, kind="lidar"
    )
    job, _ = plan(arguments)
    runner.run(job, workers=0)
    return str(path)


@pytest.fixture
def opened(generated, store):
    def open_data(names=("synth-0000",), augment=False, seed=0, **changes):
        config = DataConfig(DatasetConfig("nuscenes", generated, VERSION), "lidar", store, augmentation=SMALL)
        config = changed(config, **changes)
        return DetectionData(config, open_dataset(config.of).scenes(names), augment, seed)

    return open_data


@pytest.fixture(scope="module")
def scene(generated):
    return next(open_dataset(DatasetConfig("nuscenes", generated, VERSION)).scenes(["synth-0000"]))


def parts(batch):
    yield from (batch.images, batch.depth_m, batch.source, batch.confidence)
    for camera in batch.cameras:
        yield from camera
    for boxes, classes in batch.boxes:
        yield from (torch.from_numpy(boxes).nan_to_num(-1), torch.from_numpy(classes))


def equal(a, b):
    return a.sample_tokens == b.sample_tokens and all(
        torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True)
    )


# Which there are


def test_keyframes_as_they_are(opened, scene):
    """Without augmentation: boxes, poses and order of the ground truth, and calibration of the cameras."""
    data, truth = opened(), {k.sample_token: ground_truth(scene, k) for k in scene.keyframes}
    assert len(data) == 3 and data.notes == []
    for i, token in enumerate(truth):
        batch = data[i, 0]
        assert batch.images.shape == (1, 2, 6, 3, HEIGHT, WIDTH) and batch.images.dtype == torch.float32
        assert batch.depth_m.shape == batch.source.shape == batch.confidence.shape == (1, 6, HEIGHT, WIDTH)
        assert batch.sample_tokens == [token]
        ((boxes, classes),), (pose,) = batch.boxes, batch.world_SE3_ego
        np.testing.assert_allclose(boxes, truth[token].boxes.boxes, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(classes, truth[token].boxes.classes)
        np.testing.assert_array_equal(pose, truth[token].world_SE3_ego)
        frames = [frame for frame in scene.frames if frame.sample_token == token]
        assert [frame.camera for frame in frames] == list(scene.cameras)
        key = batch.cameras[0]
        np.testing.assert_array_equal(key.K[0], [frame.K for frame in frames])
        np.testing.assert_allclose(pose @ key.ego_SE3_cam[0].numpy(), [f.world_SE3_cam for f in frames], atol=1e-9)
        np.testing.assert_array_equal(key.bev_T_ego[0], np.eye(3))
    assert len(opened(("synth-0000", "synth-0001"), max_missing=0.5)) == 6


def test_past_frames(opened):
    """The keyframe before, in the key ego frame; at the start of a scene the key frame again."""
    data = opened(past=2)
    first, second, third = (data[i, 0] for i in range(3))
    for t in (1, 2):
        assert torch.equal(first.images[:, t], first.images[:, 0])
        assert all(torch.equal(a, b) for a, b in zip(first.cameras[t], first.cameras[0]))
    assert torch.equal(second.images[:, 1], first.images[:, 0])
    assert torch.equal(second.images[:, 2], first.images[:, 0])
    assert torch.equal(third.images[:, 1], second.images[:, 0])
    assert torch.equal(third.images[:, 2], first.images[:, 0])
    assert not torch.equal(second.images[:, 1], second.images[:, 0])
    for batch, t, other in ((second, 1, first), (third, 1, second), (third, 2, first)):
        (here,), (there,) = batch.world_SE3_ego, other.world_SE3_ego
        past, own = batch.cameras[t].ego_SE3_cam[0].numpy(), other.cameras[0].ego_SE3_cam[0].numpy()
        np.testing.assert_allclose(here @ past, there @ own, atol=1e-8)
        assert np.linalg.norm(past[:, :3, 3] - own[:, :3, 3], axis=1).min() > 0.1  # the car has moved
    assert opened(past=0)[1, 0].images.shape[1] == 1


def test_equal_draws_give_equal_keyframes(opened):
    data = opened(augment=True)
    one = data[1, 7]
    assert equal(one, data[1, 7]) and equal(one, opened(augment=True)[1, 7])
    assert equal(one, pickle.loads(pickle.dumps(data))[1, 7])
    for other in (data[1, 8], opened(augment=True, seed=1)[1, 7]):
        assert not torch.equal(one.cameras[0].image_T_recorded, other.cameras[0].image_T_recorded)
        assert not torch.equal(one.cameras[0].bev_T_ego, other.cameras[0].bev_T_ego)
        assert not torch.equal(one.images, other.images)
    assert equal(opened()[1, 7], opened(seed=1)[1, 8])
    # Each camera has its own change, in all of its frames.
    key, past = one.cameras
    assert torch.equal(key.image_T_recorded, past.image_T_recorded) and torch.equal(key.bev_T_ego, past.bev_T_ego)
    assert len(torch.unique(key.image_T_recorded[0], dim=0)) == 6


def test_batches_of_several(opened):
    data = opened(augment=True)
    samples = [data[0, 0], data[2, 1]]
    batch = collate(samples)
    assert batch.images.shape == (2, 2, 6, 3, HEIGHT, WIDTH)
    assert len(batch.cameras) == 2 and batch.cameras[1].K.shape == (2, 6, 3, 3)
    assert len(batch.boxes) == len(batch.world_SE3_ego) == 2
    for b, sample in enumerate(samples):
        one = batch._replace(
            **{name: getattr(batch, name)[b : b + 1] for name in batch._fields if name != "cameras"},
            cameras=[type(c)(*(x[b : b + 1] for x in c)) for c in batch.cameras],
        )
        assert equal(one, sample) and one.world_SE3_ego[0] is sample.world_SE3_ego[0]
    moved = batch.to(torch.device("cpu"))
    assert equal(moved, batch)


# Where things lie


def lifted(camera, n, u, v, depth_m):
    """Pixels of the input in the key ego frame, all augmentation undone; by solving, in the order they were made."""
    K, image, mount = (x[0, n].numpy() for x in camera[:3])
    recorded = np.linalg.solve(image, np.stack([u, v, np.ones(len(u))]))
    return transform(mount, (np.linalg.solve(K, recorded) * depth_m).T)


def test_labels_lie_on_the_sweep(opened, scene):
    """Each labelled pixel of a changed image, lifted at its own depth, is where the key sweep has a point.

    But for rounding to pixels, and things that move between the times of sweep and image.
    """
    data = opened(augment=True)
    sweeps = {sweep.token: sweep for sweep in scene.sweeps}
    for i, draw in ((0, 0), (1, 1), (2, 2)):
        batch = data[i, draw]
        token = batch.sample_tokens[0]
        sweep = sweeps[next(frame.key_sweep for frame in scene.frames if frame.sample_token == token)]
        points = np.fromfile(sweep.path, np.float32).reshape(-1, sweep.n_features)[:, :3].astype(np.float64)
        ego = transform(invert(batch.world_SE3_ego[0]) @ sweep.world_SE3_sensor, points)
        tree, camera = cKDTree(ego), batch.cameras[0]
        for n in range(6):
            depth_m = batch.depth_m[0, n].numpy()
            v, u = np.nonzero(depth_m)
            assert len(v) > 100
            z = depth_m[v, u].astype(np.float64)
            apart_m = tree.query(lifted(camera, n, u, v, z))[0]
            # Half a pixel of the label and half of the input, across, along a ray of up to 45 degrees.
            px_per_m = camera.K[0, n, 0, 0] * np.abs(np.linalg.det(camera.image_T_recorded[0, n])) ** 0.5 / z
            label_px_per_m = camera.K[0, n, 0, 0].item() / 2 / z
            allowed_m = 0.71 / px_per_m.numpy() + 0.71 / label_px_per_m + 0.01
            assert (apart_m < allowed_m).mean() > 0.97
        assert ((batch.source > 0) == (batch.depth_m > 0)).all() and set(batch.source.unique().tolist()) == {0, 1}
        assert (batch.confidence == 255 * (batch.depth_m > 0)).all()


def test_corners_of_boxes_lie_where_the_devkit_sees_them(opened, generated):
    """Its boxes in each camera, against ours with the change of the bird's-eye view undone; and where images show them.

    Ours have no roll and pitch in the ego frame, so corners are off by that tilt times half a box.
    """
    nusc, data = NuScenes(VERSION, str(generated), verbose=False), opened(augment=True)
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
    n_seen = 0
    for i, draw in ((0, 3), (1, 4), (2, 5)):
        batch = data[i, draw]
        key, boxes = batch.cameras[0], batch.boxes[0].boxes.astype(np.float64)
        sample = nusc.get("sample", batch.sample_tokens[0])
        for n, name in enumerate(sorted(channel for channel in sample["data"] if channel.startswith("CAM"))):
            _, theirs, K = nusc.get_sample_data(sample["data"][name], box_vis_level=BoxVisibility.NONE)
            theirs = [box for box in theirs if nusc.get("sample_annotation", box.token)["num_lidar_pts"] > 0]
            assert len(theirs) == len(boxes)
            image, mount = key.image_T_recorded[0, n].numpy(), key.ego_SE3_cam[0, n].numpy()
            for box, other in zip(boxes, theirs):
                c, s = np.cos(box[6]), np.sin(box[6])
                turned = signs * box[3:6] @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + box[:3]
                ego = np.linalg.solve(key.bev_T_ego[0].numpy(), turned.T).T
                ours = transform(invert(mount), ego)
                apart_m = np.linalg.norm(ours[:, None] - other.corners().T, axis=2)
                tilt = np.arccos(mount[2, :3] @ other.rotation_matrix[:, 2])
                assert max(apart_m.min(0).max(), apart_m.min(1).max()) < 1e-3 + tilt * np.linalg.norm(other.wlh) / 2
                if other.center[2] > 1:
                    expected = view_points(other.center[:, None], K, normalize=True)
                    u, v, z = key.K[0, n].numpy() @ ours.mean(0)
                    np.testing.assert_allclose(image @ [u / z, v / z, 1], (image @ expected)[:, 0], atol=0.01)
                    n_seen += 1
    assert n_seen > 100


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_images_are_read_where_the_transform_says(seed, scene, tmp_path):
    """An image of its own coordinates, shrunk and warped, against the place each pixel of the input came from."""
    v, u = np.mgrid[:225, :400]
    pixels = np.stack([u * 255 / 399, v * 255 / 224, np.full(u.shape, 255)], -1).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    frame = replace(scene.frames[0], path=tmp_path / "own.png")
    rng = None if seed is None else np.random.default_rng(seed)
    input_T_recorded = data_module.image_transform(225, 400, SMALL, rng)
    read = _read(frame, input_T_recorded, HEIGHT, WIDTH)
    at_v, at_u = np.nonzero(read[..., 2] == 255)
    assert len(at_v) > 3000
    came_from = np.linalg.solve(input_T_recorded, np.stack([at_u, at_v, np.ones(len(at_u))]))
    apart = read[at_v, at_u, :2] - came_from[:2].T * [255 / 399, 255 / 224]
    # In levels, of which a pixel of the input is about two; each step rounds by up to a half.
    assert np.abs(apart).max() < 1.5
    assert np.abs(apart.mean(0)).max() < 0.35  # by half a pixel of either size: 0.6


def test_pixels_are_normalised(opened, scene):
    batch = opened()[0, 0]
    frame = next(f for f in scene.frames if f.sample_token == batch.sample_tokens[0])
    raw = _read(frame, batch.cameras[0].image_T_recorded[0, 0].numpy(), HEIGHT, WIDTH)
    for channel in range(3):
        expected = (raw[..., channel].astype(np.float64) - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(batch.images[0, 0, 0, channel], expected, atol=1e-5)


# What will not do


def refused(reason, call):
    with pytest.raises(InputError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)


def test_missing_labels_are_counted(opened, store):
    """The second scene has none: half of all."""
    both = ("synth-0000", "synth-0001")
    text = f"version 1 of {re.escape(store)}: 18 of 36 camera frames have no lidar label .*3 of CAM_FRONT"
    refused(text + ".*; make them, or allow a share with --max-missing", lambda: opened(both))
    refused(text, lambda: opened(both, max_missing=0.49))
    data = opened(both, max_missing=0.5)
    assert len(data.notes) == 1 and re.match(text, data.notes[0])
    with_label, without = data[0, 0], data[3, 0]
    assert with_label.depth_m.any() and with_label.confidence.any()
    assert not (without.depth_m.any() or without.source.any() or without.confidence.any())
    assert without.images.any() and len(without.boxes[0].boxes)


def test_no_labels_need_no_store(opened):
    """All else is the same as with labels."""
    none, some = (opened(augment=True, **change)[1, 3] for change in ({"depth_source": "none", "store": None}, {}))
    assert not (none.depth_m.any() or none.source.any() or none.confidence.any())
    assert some.depth_m.any()
    assert equal(none, some._replace(depth_m=none.depth_m, source=none.source, confidence=none.confidence))


def test_options_that_will_not_do(opened, tmp_path):
    refused("^--depth-source lidar: needs --store", lambda: opened(store=None))
    refused("no labels of kind completed", lambda: opened(depth_source="completed"))
    refused("no version 'good'", lambda: opened(ref="good"))
    refused("nothing", lambda: opened(("nothing",)))


def test_labels_of_another_image_are_refused(opened):
    """A focal length that was changed since, and an image that was cut."""
    for change in (lambda f: {"K": f.K * [[1.01], [1], [1]]}, lambda f: {"height": f.height - 5}):
        data = opened()
        item = data.items[1]
        frame = item.frames[0][2]
        wrong = replace(frame, **change(frame))
        data.items[1] = replace(item, frames=((*item.frames[0][:2], wrong, *item.frames[0][3:]), item.frames[1]))
        refused(
            f"^sample {frame.sample_token}, {frame.camera}: the label of 200x112 pixels is not the image of 400x2",
            lambda data=data, wrong=wrong: data._label(wrong, np.eye(3), HEIGHT, WIDTH),
        )
        assert data._label(frame, np.eye(3), HEIGHT, WIDTH).depth_m.any()


def of(scenes, dataroot, **changes):
    config = DataConfig(DatasetConfig("nuscenes", dataroot, VERSION), "none", augmentation=SMALL)
    return DetectionData(changed(config, **changes), scenes, augment=False)


def test_keyframes_that_lack_a_camera_are_left_out_and_noted(generated, scene):
    token = scene.frames[1].sample_token  # of the first camera's second frame
    frames = [f for f in scene.frames if (f.sample_token, f.camera) != (token, "CAM_BACK")]
    data = of([replace(scene, frames=tuple(frames))], generated)
    assert data.notes == ["synth-0000: 1 of 3 keyframes left out, they lack a camera"]
    tokens = [keyframe.sample_token for keyframe in scene.keyframes]
    assert [item.frames[0][0].sample_token for item in data.items] == [tokens[0], tokens[2]]
    refused("no keyframe of the scenes asked for has all cameras", lambda: of([], generated))


def test_objects_of_no_class_are_counted_and_some_must_have_one(generated, scene):
    n_cars = sum(len(track.boxes) for track in scene.tracks if track.category == "vehicle.car")
    swapped = [replace(t, category="Tram" if t.category == "vehicle.car" else t.category) for t in scene.tracks]
    data = of([replace(scene, tracks=tuple(swapped))], generated)
    assert data.notes == [f"boxes of none of the ten detection classes are left out: Tram {n_cars}"] and n_cars > 5
    for tracks, told in (
        ([], r"classes; detectors learn from a dataset with tracks"),
        ([t for t in swapped if t.category == "Tram"], rf"classes \(only Tram {n_cars}\); detectors learn"),
    ):
        tokens = {track.token for track in tracks}
        keyframes = [replace(k, track_tokens=tuple(t for t in k.track_tokens if t in tokens)) for k in scene.keyframes]
        without = replace(scene, tracks=tuple(tracks), keyframes=tuple(keyframes))
        refused(told, lambda without=without: of([without], generated))


def test_kitti_is_learned_from_too(recorded):
    """Two vans, a cyclist and a pedestrian of its tracklets, each where the key sweep has points."""
    config = DatasetConfig("kitti-raw", recorded / "kitti_raw")
    (scene,) = open_dataset(config).scenes()
    data = of([scene], config.dataroot, dataset="kitti-raw", version=None, past=0)
    keyframe, batch = scene.keyframes[5], data[5, 0]
    assert batch.sample_tokens == [keyframe.sample_token] and len(data) == len(scene.keyframes)
    ((boxes, classes),) = batch.boxes
    assert sorted(CLASSES[i] for i in classes) == ["bicycle", "car", "car", "pedestrian"]
    sweep = next(s for s in scene.sweeps if s.token == scene.frames[5].key_sweep)
    points = np.fromfile(sweep.path, np.float32).reshape(-1, 4)[:, :3].astype(np.float64)
    ego = transform(invert(batch.world_SE3_ego[0]) @ sweep.world_SE3_sensor, points)
    for x, y, z, length, width, height, yaw in boxes[:, :7].astype(np.float64):
        c, s = np.cos(yaw), np.sin(yaw)
        in_box = (ego - [x, y, z]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        assert (np.abs(in_box) <= np.array([length, width, height]) / 2).all(1).sum() > 20
