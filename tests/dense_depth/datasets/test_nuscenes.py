import json
import re

import numpy as np
import pytest
from conftest import DATA, cut_points
from pyquaternion import Quaternion
from scipy.spatial.transform import Rotation

from dense_depth import InputError
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import Crop
from dense_depth.geometry import in_image, invert, project, transform

ONE_SAMPLE, KEYFRAME = DATA / "nuscenes_one_sample", DATA / "nuscenes_keyframe"
real = pytest.mark.skipif(not ONE_SAMPLE.is_dir(), reason=f"needs the real sample in {ONE_SAMPLE}")


# Real data ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_sample():
    (scene,) = open_dataset(DatasetConfig("nuscenes", ONE_SAMPLE, "v1.0-mini")).scenes()
    return scene


def inside_by_corner(uv, depth, width=1600, height=900):
    return (depth > 0) & (uv >= 0).all(axis=1) & (uv[:, 0] < width) & (uv[:, 1] < height)


@real
def test_one_sample_of_a_cut_dataset(one_sample):
    assert (one_sample.name, one_sample.cameras) == ("scene-0061", ("CAM_FRONT",))
    assert (len(one_sample.sweeps), len(one_sample.frames), len(one_sample.tracks)) == (1, 1, 1)
    assert one_sample.frames[0].key_sweep == one_sample.sweeps[0].token == "9d9bf11fb0e144c8b446d54a8a00184f"
    assert one_sample.frames[0].timestamp_us == 1532402927612460
    assert one_sample.sweeps[0].path.is_file()
    assert one_sample.sweeps[0].ego_crops == (Crop((-1, 1), (-2, 2)),)  # nuScenes mounts its LiDAR with y forward
    assert one_sample.frames[0].path.is_file()
    (box,) = one_sample.tracks[0].boxes
    assert one_sample.tracks[0].category == "human.pedestrian.adult"
    np.testing.assert_array_equal(box.size_lwh_m, [0.669, 0.621, 1.642])  # the table has w, l, h
    np.testing.assert_array_equal(box.world_SE3_box[:3, 3], [373.256, 1130.419, 0.8])
    assert len(one_sample.notes) == 4
    for text in ("next of sample ", "scene-0061 LIDAR_TOP: next", "scene-0061 CAM_FRONT: next", "nbr_samples is 39"):
        assert sum(text in note for note in one_sample.notes) == 1


@real
def test_one_sample_projects_as_the_devkit_does(one_sample):
    """By pixel corners (0 <= u < width) 3,067 points, the least of README's six; by centres there 3,060."""
    sweep, frame = one_sample.sweeps[0], one_sample.frames[0]
    points = np.fromfile(sweep.path, np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
    uv, depth = project(frame.K, transform(invert(frame.world_SE3_cam) @ sweep.world_SE3_sensor, points))
    assert inside_by_corner(uv, depth).sum() == 3067
    assert in_image(uv, depth, frame.width, frame.height).sum() == 3060

    tables = {path.stem: json.loads(path.read_text()) for path in (ONE_SAMPLE / "v1.0-mini").glob("*.json")}
    by_token = {name: {row["token"]: row for row in rows} for name, rows in tables.items()}
    lidar, camera = tables["sample_data"]  # the four steps of NuScenesExplorer.map_pointcloud_to_image
    moved = points.T
    for table, row in (("calibrated_sensor", lidar), ("ego_pose", lidar)):
        pose = by_token[table][row[f"{table}_token"]]
        moved = Quaternion(pose["rotation"]).rotation_matrix @ moved + np.array(pose["translation"])[:, None]
    for table, row in (("ego_pose", camera), ("calibrated_sensor", camera)):
        pose = by_token[table][row[f"{table}_token"]]
        moved = Quaternion(pose["rotation"]).rotation_matrix.T @ (moved - np.array(pose["translation"])[:, None])
    np.testing.assert_allclose(depth, moved[2], atol=1e-8)
    images = json.loads((KEYFRAME / "info.json").read_text())["data_list"][0]["images"]
    np.testing.assert_allclose(
        invert(frame.world_SE3_cam) @ sweep.world_SE3_sensor, images["CAM_FRONT"]["lidar2cam"], atol=1e-3
    )


@real
def test_points_in_six_cameras():
    """README's 3,067-4,826 points: pixel corners at integers. The project's rule has pixel centres there."""
    info = json.loads((KEYFRAME / "info.json").read_text())["data_list"][0]
    points = np.fromfile(next(KEYFRAME.glob("*.bin")), np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
    by_corner, by_centre = {}, {}
    for camera, image in info["images"].items():
        uv, depth = project(np.array(image["cam2img"]), transform(np.array(image["lidar2cam"]), points))
        by_corner[camera] = inside_by_corner(uv, depth).sum()
        by_centre[camera] = in_image(uv, depth, 1600, 900).sum()
    order = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
    assert [by_corner[camera] for camera in order] == [3067, 3079, 3704, 4826, 4097, 3379]
    assert [by_centre[camera] for camera in order] == [3060, 3079, 3701, 4825, 4096, 3376]


# Generated tables -----------------------------------------------------------------------------------------------------

VERSION = "v1.0-tiny"
SCENES = ("scene-0001", "tiny-a")  # the first is also a name of the official splits
STEP_US = 125_000
CAM_QUATERNION = [0.5, -0.5, 0.5, -0.5]  # looks along x of the ego frame
K = [[100.0, 0.0, 80.0], [0.0, 100.0, 45.0], [0.0, 0.0, 1.0]]


def yaw_quaternion(yaw):
    return [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]


def chain(rows):
    for row, before, after in zip(rows, [None, *rows], [*rows[1:], None]):
        row["prev"] = before["token"] if before else ""
        row["next"] = after["token"] if after else ""
    return rows


def write_tables():
    """Two scenes of three keyframes every 0.5 s.

    LIDAR_TOP sweeps every 0.125 s, from two before the first keyframe to two after the last; CAM_FRONT 20 ms earlier;
    CAM_BACK at keyframes only. The ego drives along x at 10 m/s and turns 0.1 rad/s. Three cars: ``a`` is in every
    keyframe, ``gap`` is not in the second, ``late`` is not in the first.
    """
    tables = {
        "category": [{"token": "cat", "name": "vehicle.car"}],
        "attribute": [],
        "visibility": [],
        "log": [{"token": "log"}],
        "map": [{"token": "map", "filename": "map.png", "log_tokens": ["log"]}],
        "sensor": [
            {"token": "s-LIDAR_TOP", "channel": "LIDAR_TOP", "modality": "lidar"},
            {"token": "s-CAM_FRONT", "channel": "CAM_FRONT", "modality": "camera"},
            {"token": "s-CAM_BACK", "channel": "CAM_BACK", "modality": "camera"},
            {"token": "s-RADAR_FRONT", "channel": "RADAR_FRONT", "modality": "radar"},
        ],
        "calibrated_sensor": [],
        **{name: [] for name in ("ego_pose", "scene", "sample", "sample_data", "instance", "sample_annotation")},
    }
    turned = (Quaternion(yaw_quaternion(np.pi)) * Quaternion(CAM_QUATERNION)).elements.tolist()
    mounts = {
        "LIDAR_TOP": ([1.0, 0.0, 1.8], yaw_quaternion(-np.pi / 2), []),
        "CAM_FRONT": ([1.7, 0.0, 1.5], CAM_QUATERNION, K),
        "CAM_BACK": ([0.0, 0.0, 1.5], turned, K),
    }
    for channel, (translation, rotation, intrinsic) in mounts.items():
        row = {"token": f"c-{channel}", "sensor_token": f"s-{channel}", "translation": translation}
        tables["calibrated_sensor"].append(row | {"rotation": rotation, "camera_intrinsic": intrinsic})
    for n, name in enumerate(SCENES):
        start_us = 1_500_000_000_000_000 + n * 1_000_000_000
        scene = {"token": f"{n}", "log_token": "log", "name": name, "nbr_samples": 3}
        samples = [
            {"token": f"{n}-{k}", "timestamp": start_us + 4 * k * STEP_US, "scene_token": f"{n}"} for k in range(3)
        ]
        tables["scene"].append(scene)
        tables["sample"] += chain(samples)
        for channel, shift_us, steps in (
            ("LIDAR_TOP", 0, range(-2, 11)),
            ("CAM_FRONT", -20_000, range(-1, 10)),
            ("CAM_BACK", 7_000, (0, 4, 8)),
        ):
            rows = []
            for step in steps:
                time_us = start_us + step * STEP_US + shift_us
                token = f"{n}-{channel}-{step:02d}"
                seconds = (time_us - start_us) * 1e-6
                pose = {"token": f"e-{token}", "timestamp": time_us, "translation": [1000 + 10 * seconds, 2000.0, 0.0]}
                tables["ego_pose"].append(pose | {"rotation": yaw_quaternion(0.1 * seconds)})
                rows.append(
                    {
                        "token": token,
                        "sample_token": f"{n}-{min(max(-(-step // 4), 0), 2)}",
                        "ego_pose_token": f"e-{token}",
                        "calibrated_sensor_token": f"c-{channel}",
                        "timestamp": time_us,
                        "is_key_frame": step in (0, 4, 8),
                        "height": 90 if channel.startswith("CAM") else 0,
                        "width": 160 if channel.startswith("CAM") else 0,
                        "filename": f"samples/{channel}/{token}.bin",
                    }
                )
            tables["sample_data"] += chain(rows)
        for car, keyframes in {"a": (0, 1, 2), "gap": (0, 2), "late": (1, 2)}.items():
            tables["instance"].append({"token": f"{n}-{car}", "category_token": "cat"})
            rows = [
                {
                    "token": f"{n}-{car}-{k}",
                    "sample_token": f"{n}-{k}",
                    "instance_token": f"{n}-{car}",
                    "translation": [1020.0 + 4 * k, 2005.0, 1.0],
                    "size": [1.9, 4.5, 1.6],
                    "rotation": yaw_quaternion(0.2 * k),
                }
                for k in keyframes
            ]
            tables["sample_annotation"] += chain(rows)
    return tables


def save(root, tables):
    folder = root / VERSION
    folder.mkdir(exist_ok=True)
    (root / "map.png").touch()
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root


def row_of(tables, table, token):
    (row,) = [row for row in tables[table] if row["token"] == token]
    return row


def read(root, names=(), cameras=()):
    return list(open_dataset(DatasetConfig("nuscenes", root, VERSION, cameras=cameras)).scenes(names))


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tiny"), write_tables())


@pytest.fixture(scope="module")
def tiny(tiny_root):
    return open_dataset(DatasetConfig("nuscenes", tiny_root, VERSION))


def test_sweeps_and_frames(tiny, tiny_root):
    assert tiny.scene_names == SCENES
    for n, scene in enumerate(tiny.scenes()):
        start_us = 1_500_000_000_000_000 + n * 1_000_000_000
        assert (scene.dataset, scene.token, scene.notes) == ("nuscenes", f"{n}", ())
        assert [s.timestamp_us - start_us for s in scene.sweeps] == [step * STEP_US for step in range(-2, 11)]
        assert scene.sweeps[0].path == tiny_root / "samples" / "LIDAR_TOP" / f"{n}-LIDAR_TOP--2.bin"
        assert {sweep.n_features for sweep in scene.sweeps} == {5}
        assert scene.cameras == ("CAM_BACK", "CAM_FRONT")
        assert [(f.camera, f.sample_token) for f in scene.frames] == [
            (camera, f"{n}-{k}") for camera in ("CAM_BACK", "CAM_FRONT") for k in range(3)
        ]
        assert [f.key_sweep for f in scene.frames_of("CAM_FRONT")] == [f"{n}-LIDAR_TOP-{k:02d}" for k in (0, 4, 8)]
        frame = scene.frames_of("CAM_FRONT")[1]
        assert (frame.width, frame.height, frame.timestamp_us) == (160, 90, start_us + 480_000)
        np.testing.assert_array_equal(frame.K, K)


def test_every_row_has_its_own_pose(tiny):
    scene = next(tiny.scenes())
    start_us = scene.sweeps[2].timestamp_us

    def ego_at(timestamp_us):
        seconds = (timestamp_us - start_us) * 1e-6
        return Rotation.from_euler("z", 0.1 * seconds), np.array([1000 + 10 * seconds, 2000, 0])

    for sweep in scene.sweeps:
        rotation, place = ego_at(sweep.timestamp_us)
        expected = (rotation * Rotation.from_euler("z", -np.pi / 2)).as_matrix()
        np.testing.assert_allclose(sweep.world_SE3_sensor[:3, :3], expected, atol=1e-12)
        np.testing.assert_allclose(sweep.world_SE3_sensor[:3, 3], place + rotation.apply([1.0, 0, 1.8]))
    for frame in scene.frames:
        rotation, place = ego_at(frame.timestamp_us)
        ahead, mount = {"CAM_FRONT": (1, [1.7, 0, 1.5]), "CAM_BACK": (-1, [0, 0, 1.5])}[frame.camera]
        np.testing.assert_allclose(frame.world_SE3_cam[:3, 2], rotation.apply([ahead, 0, 0]), atol=1e-12)
        np.testing.assert_allclose(frame.world_SE3_cam[:3, 1], [0, 0, -1], atol=1e-12)
        np.testing.assert_allclose(frame.world_SE3_cam[:3, 3], place + rotation.apply(mount))


def test_tracks_between_keyframes(tiny, tiny_root):
    """The devkit interpolates only objects of both neighbouring keyframes; ours any object between its own boxes."""
    from nuscenes import NuScenes

    devkit = NuScenes(VERSION, str(tiny_root), verbose=False)
    scene = next(tiny.scenes())
    tracks = {track.token: track for track in scene.tracks}
    assert list(tracks) == ["0-a", "0-gap", "0-late"]
    assert {track.category for track in scene.tracks} == {"vehicle.car"}
    assert [len(track.boxes) for track in scene.tracks] == [3, 2, 2]

    def by_devkit(sweep):
        boxes = devkit.get_boxes(sweep.token)
        return {devkit.get("sample_annotation", box.token)["instance_token"]: box for box in boxes}

    for sweep in scene.sweeps[2:11]:
        ours, theirs = tracks["0-a"].box_at(sweep.timestamp_us), by_devkit(sweep)["0-a"]
        np.testing.assert_allclose(ours.world_SE3_box[:3, 3], theirs.center)
        np.testing.assert_allclose(ours.world_SE3_box[:3, :3], theirs.rotation_matrix, atol=1e-9)
        np.testing.assert_allclose(ours.size_lwh_m, theirs.wlh[[1, 0, 2]])
    # Midway between the second and third keyframe, where `gap` is not in the second.
    middle = scene.sweeps[8]
    for token, devkit_x in (("0-late", 1026), ("0-gap", 1028)):
        assert tracks[token].box_at(middle.timestamp_us).world_SE3_box[0, 3] == pytest.approx(1026)
        assert by_devkit(middle)[token].center[0] == pytest.approx(devkit_x)
    # Before its first box nobody knows where `late` was, unless asked to continue its motion.
    before_us = scene.sweeps[4].timestamp_us
    assert tracks["0-late"].box_at(before_us) is None
    assert tracks["0-late"].box_at(before_us, 0.5).world_SE3_box[0, 3] == pytest.approx(1022)


def test_keyframes_and_boxes_as_the_devkit_has_them(generated):
    """Order, velocity, points and attribute of every box of every keyframe, and the pose of the vehicle."""
    from nuscenes import NuScenes

    devkit = NuScenes("v1.0-synth", str(generated), verbose=False)
    scenes = list(open_dataset(DatasetConfig("nuscenes", generated, "v1.0-synth")).scenes())
    boxes = 0
    for scene, row in zip(scenes, devkit.scene):
        samples = [sample for sample in devkit.sample if sample["scene_token"] == row["token"]]
        assert [keyframe.sample_token for keyframe in scene.keyframes] == [sample["token"] for sample in samples]
        for keyframe, sample in zip(scene.keyframes, samples):
            lidar = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
            ego = devkit.get("ego_pose", lidar["ego_pose_token"])
            np.testing.assert_array_equal(keyframe.world_SE3_ego[:3, 3], ego["translation"])
            rotation = Quaternion(ego["rotation"]).rotation_matrix
            np.testing.assert_allclose(keyframe.world_SE3_ego[:3, :3], rotation, atol=1e-12)
            ours = scene.boxes_of(keyframe)
            assert len(ours) == len(sample["anns"])
            for (track, box), token in zip(ours, sample["anns"]):
                annotation = devkit.get("sample_annotation", token)
                assert (track.token, track.category) == (annotation["instance_token"], annotation["category_name"])
                np.testing.assert_array_equal(box.world_SE3_box[:3, 3], annotation["translation"])
                np.testing.assert_array_equal(box.velocity_mps, devkit.box_velocity(token))
                assert box.n_points == annotation["num_lidar_pts"] + annotation["num_radar_pts"]
                attributes = [devkit.get("attribute", name)["name"] for name in annotation["attribute_tokens"]]
                assert box.attribute == (attributes[0] if attributes else "")
                boxes += 1
    assert boxes > 100
    assert len({box.attribute for scene in scenes for track in scene.tracks for box in track.boxes}) > 3


def test_velocities_at_gaps(tmp_path):
    """Ends, gaps longer than the devkit's 1.5 s a step, single boxes; NaN where the devkit says NaN."""
    from nuscenes import NuScenes

    tables = write_tables()
    row_of(tables, "sample", "0-2")["timestamp"] += 1_100_000  # 1.6 s after the second keyframe
    tables["instance"].append({"token": "0-once", "category_token": "cat"})
    once = row_of(tables, "sample_annotation", "0-a-1") | {"token": "once", "instance_token": "0-once"}
    tables["sample_annotation"] += chain([once])
    save(tmp_path, tables)
    devkit = NuScenes(VERSION, str(tmp_path), verbose=False)
    scene = read(tmp_path, [SCENES[0]])[0]
    known = {}
    for keyframe, sample in zip(scene.keyframes, devkit.sample):
        for (track, box), token in zip(scene.boxes_of(keyframe), sample["anns"], strict=True):
            np.testing.assert_array_equal(box.velocity_mps, devkit.box_velocity(token))
            known[track.token, sample["token"]] = not np.isnan(box.velocity_mps).any()
            assert (box.n_points, box.attribute) == (None, "")  # these tables do not say
    assert known["0-a", "0-0"] and known["0-a", "0-1"] and not known["0-a", "0-2"]
    assert not known["0-gap", "0-2"] and not known["0-once", "0-1"]


def test_splits_and_names(tmp_path):
    from nuscenes.utils.splits import create_splits_scenes

    save(tmp_path, write_tables())
    official = create_splits_scenes()
    (split,) = [name for name in ("train", "val", "test") if SCENES[0] in official[name]]

    def names(*selection):
        return [scene.name for scene in read(tmp_path, selection)]

    assert names() == list(SCENES)
    assert names(split) == [SCENES[0]]
    assert names("tiny-a") == ["tiny-a"]
    assert names("tiny-a", split, "tiny-a") == list(SCENES)
    with pytest.raises(
        InputError, match=r"scene night: neither a scene nor a split .* 2 scenes are scene-0001, tiny-a"
    ):
        names("tiny-a", "night")
    with pytest.raises(InputError, match=r"split mini_val: .*none of its scenes"):
        names("mini_val")
    (tmp_path / VERSION / "splits.json").write_text(json.dumps({"train": ["tiny-a"], "val": ["scene-0001", "gone"]}))
    assert names("train") == ["tiny-a"]
    assert names("val") == ["scene-0001"]
    assert names("train", "val") == list(SCENES)
    (tmp_path / VERSION / "splits.json").write_text('{"train": "tiny-a"}')
    with pytest.raises(InputError, match=r"splits.json: must map"):
        names("train")


def test_lidar_json_says_how_points_are_timed(tmp_path):
    save(tmp_path, write_tables())
    path = tmp_path / VERSION / "lidar.json"

    def timing():
        (found,) = {(sweep.timing.rule, sweep.compensated) for scene in read(tmp_path) for sweep in scene.sweeps}
        return found

    assert timing() == ("order", True)
    for rule, compensated in (("none", True), ("order", False)):
        path.write_text(json.dumps({"point_times": rule, "compensated": compensated}))
        assert timing() == (rule, compensated)
    for text, told in (
        ("{", "cannot be read as JSON"),
        ("[]", "must have point_times and compensated"),
        ('{"point_times": "order"}', "must have point_times and compensated"),
        ('{"point_times": "order", "compensated": true, "offset": 1}', "and nothing else"),
        ('{"point_times": "azimuth", "compensated": true}', 'must be "order" or "none"'),
        ('{"point_times": "order", "compensated": 1}', "compensated true or false"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=f"lidar.json: .*{told}"):
            read(tmp_path)


def test_deskewing_needs_times(tmp_path):
    save(tmp_path, write_tables())
    for deskew, compensated in (("auto", True), ("on", False), ("off", True)):
        sweeps = read_with(tmp_path, deskew=deskew)[0].sweeps
        assert {sweep.compensated for sweep in sweeps} == {compensated}
    (tmp_path / VERSION / "lidar.json").write_text('{"point_times": "none", "compensated": false}')
    assert read_with(tmp_path, deskew="off")
    for deskew in ("auto", "on"):
        with pytest.raises(InputError, match="--deskew: nobody knows when"):
            read_with(tmp_path, deskew=deskew)


def test_poses_without_height_are_rough(tmp_path):
    tables = write_tables()
    assert all(scene.rough_poses for scene in read(save(tmp_path, tables)))
    for i, row in enumerate(tables["ego_pose"]):
        row["translation"][2] = 0.01 * i
    assert not any(scene.rough_poses for scene in read(save(tmp_path, tables)))


def read_with(root, **options):
    return list(open_dataset(DatasetConfig("nuscenes", root, VERSION, **options)).scenes())


def test_cameras(tiny_root):
    assert read(tiny_root, cameras=["CAM_BACK"])[0].cameras == ("CAM_BACK",)
    with pytest.raises(InputError, match=r"camera CAM_LEFT: .* there are CAM_BACK, CAM_FRONT$"):
        read(tiny_root, cameras=["CAM_LEFT"])


def test_a_scene_may_lack_a_camera_of_another(tmp_path):
    tables = write_tables()
    rows = tables["sample_data"]
    tables["sample_data"] = [row for row in rows if not row["token"].startswith("1-CAM_BACK")]
    assert [scene.cameras for scene in read(save(tmp_path, tables))] == [("CAM_BACK", "CAM_FRONT"), ("CAM_FRONT",)]
    with pytest.raises(InputError, match=r"sample 1-0 \(tiny-a\): no key frame of CAM_BACK"):
        read(tmp_path, cameras=["CAM_BACK"])


def test_table_order_does_not_matter(tmp_path, tiny):
    tables = {name: rows[::-1] for name, rows in write_tables().items()}
    for ours, theirs in zip(read(save(tmp_path, tables)), tiny.scenes()):
        assert [sweep.token for sweep in ours.sweeps] == [sweep.token for sweep in theirs.sweeps]
        assert [frame.path.name for frame in ours.frames] == [frame.path.name for frame in theirs.frames]
        assert [track.token for track in ours.tracks] == [track.token for track in theirs.tracks]


def test_cut_ends_are_noted(tmp_path):
    """The first scene loses its last keyframe, as when someone copies a part of a dataset."""
    tables = write_tables()
    tables["sample"] = [row for row in tables["sample"] if row["token"] != "0-2"]
    for table in ("sample_data", "sample_annotation"):
        tables[table] = [row for row in tables[table] if row["sample_token"] != "0-2"]
    first, second = read(save(tmp_path, tables))
    assert (len(first.sweeps), len(first.frames), [len(track.boxes) for track in first.tracks]) == (7, 4, [2, 1, 1])
    assert second.notes == ()
    assert first.notes == (
        "scene-0001: next of sample 0-1 is not in the table: the dataset was cut",
        "scene-0001: nbr_samples is 3 but the sample table has 2",
        "scene-0001 LIDAR_TOP: next of sample_data 0-LIDAR_TOP-04 is not in the table: the dataset was cut",
        "scene-0001 CAM_BACK: next of sample_data 0-CAM_BACK-04 is not in the table: the dataset was cut",
        "scene-0001 CAM_FRONT: next of sample_data 0-CAM_FRONT-04 is not in the table: the dataset was cut",
        "scene-0001: 3 ends of annotation chains lie outside the tables, such as instance 0-a: "
        "next of sample_annotation 0-a-1 is not in the table: the dataset was cut",
    )


def test_a_scene_without_rows(tmp_path):
    """Someone kept the whole scene table, but the samples of one scene only."""
    tables = write_tables()
    for table in ("sample", "sample_data", "sample_annotation"):
        tables[table] = [row for row in tables[table] if row["token"].startswith("0-")]
    _, empty = read(save(tmp_path, tables))
    assert (empty.sweeps, empty.frames, empty.tracks) == ((), (), ())
    assert empty.notes == ("tiny-a: nbr_samples is 3 but the sample table has 0",)


# Bad input ------------------------------------------------------------------------------------------------------------


def refused(root, tables, message):
    with pytest.raises(InputError, match=message) as error:
        read(save(root, tables))
    assert "\n" not in str(error.value)


def test_vehicles_that_go_sideways_are_refused(tmp_path):
    """Each rotation alone is a good one: level, and no place is far from the one before."""
    tables = write_tables()
    for row in tables["ego_pose"]:
        row["rotation"] = (Quaternion(row["rotation"]) * Quaternion(yaw_quaternion(np.pi / 2))).elements.tolist()
    refused(tmp_path, tables, r"^scene-0001: ego_pose: the vehicle mostly goes sideways, 9\d degrees .*wxyz")


@pytest.mark.parametrize(
    ("table", "token", "field"),
    [
        ("scene", "1", "log_token"),
        ("sample", "0-1", "scene_token"),
        ("sample_data", "0-LIDAR_TOP-04", "sample_token"),
        ("sample_data", "0-LIDAR_TOP-05", "sample_token"),
        ("sample_data", "0-LIDAR_TOP-05", "ego_pose_token"),
        ("sample_data", "1-CAM_BACK-04", "calibrated_sensor_token"),
        ("calibrated_sensor", "c-CAM_FRONT", "sensor_token"),
        ("sample_annotation", "0-gap-2", "sample_token"),
        ("sample_annotation", "0-gap-2", "instance_token"),
        ("instance", "1-late", "category_token"),
    ],
)
def test_dangling_keys_are_named(tmp_path, table, token, field):
    tables = write_tables()
    row_of(tables, table, token)[field] = "nowhere"
    refused(
        tmp_path, tables, f"^{table} {token}: {field} 'nowhere' is not in the table {field.removesuffix('_token')}$"
    )


@pytest.mark.parametrize(
    ("table", "token", "changes", "message"),
    [
        ("sample_data", "0-LIDAR_TOP-05", {"ego_pose_token": None}, "ego_pose_token is missing or of the wrong type"),
        ("sample_data", "0-LIDAR_TOP-05", {"timestamp": "5"}, "timestamp is missing or of the wrong type"),
        ("ego_pose", "e-0-CAM_BACK-04", {"token": "e-0-CAM_BACK-00"}, "^table ego_pose: two rows have the same token"),
        ("scene", "1", {"name": "scene-0001"}, "scene.json: two scenes have the same name"),
        # chains
        ("sample_data", "0-LIDAR_TOP-05", {"next": "0-LIDAR_TOP-03"}, "0-LIDAR_TOP-05 and 0-LIDAR_TOP-06 .*damaged"),
        ("sample_data", "0-LIDAR_TOP-05", {"prev": ""}, "0-LIDAR_TOP-04 and 0-LIDAR_TOP-05 .*is missing between"),
        ("sample_data", "0-LIDAR_TOP-10", {"next": "0-LIDAR_TOP--2"}, "0-LIDAR_TOP-10 .* but next is 0-LIDAR_TOP--2"),
        ("sample_data", "0-LIDAR_TOP--2", {"prev": "1-LIDAR_TOP-10"}, "0-LIDAR_TOP--2 .* but prev is 1-LIDAR_TOP-10"),
        ("sample_data", "0-CAM_FRONT-05", {"next": ""}, "0-CAM_FRONT-05 and 0-CAM_FRONT-06 .*is missing between"),
        ("sample", "0-1", {"next": "0-0"}, "sample 0-1 and 0-2 .*damaged"),
        ("sample_annotation", "0-a-1", {"prev": "0-late-1"}, "sample_annotation 0-a-0 and 0-a-1 .*damaged"),
        (
            "sample_data",
            "0-LIDAR_TOP-05",
            {"timestamp": 1_500_000_000_750_000},
            "both have the timestamp 1500000000750",
        ),
        ("sample_data", "0-LIDAR_TOP-05", {"timestamp": 1_500_000_000_760_000}, "LIDAR_TOP-04 and 0-LIDAR_TOP-06"),
        ("sample_annotation", "0-a-1", {"sample_token": "0-0"}, "0-a-0 and 0-a-1 .*both have the timestamp"),
        ("sample_annotation", "0-a-1", {"attribute_tokens": ["gone"]}, "0-a-1: attribute 'gone' is not in the table"),
        ("sample_annotation", "0-a-1", {"num_lidar_pts": "5", "num_radar_pts": 0}, "0-a-1: num_lidar_pts and num_rad"),
        # keyframes
        ("sample_data", "0-LIDAR_TOP-04", {"is_key_frame": False}, r"sample 0-1 .*no key frame of LIDAR_TOP"),
        ("sample_data", "0-CAM_BACK-08", {"is_key_frame": False}, r"sample 0-2 .*no key frame of CAM_BACK"),
        ("sample_data", "0-LIDAR_TOP-03", {"is_key_frame": True}, r"sample 0-1 .*two key frames of LIDAR_TOP"),
        # file names
        ("sample_data", "0-LIDAR_TOP-05", {"filename": "/etc/passwd"}, "0-LIDAR_TOP-05: filename '/etc/passwd'"),
        ("sample_data", "0-CAM_BACK-04", {"filename": "samples/../../x"}, "0-CAM_BACK-04: filename 'samples/../../x'"),
        ("sample_data", "0-LIDAR_TOP-05", {"filename": ""}, "0-LIDAR_TOP-05: filename ''"),
        ("sample_data", "0-LIDAR_TOP-05", {"filename": "a\0b"}, "0-LIDAR_TOP-05: filename"),
        # calibration and poses
        (
            "calibrated_sensor",
            "c-CAM_FRONT",
            {"camera_intrinsic": list(map(list, zip(*K)))},
            "c-CAM_FRONT: .*transposed",
        ),
        ("calibrated_sensor", "c-CAM_FRONT", {"camera_intrinsic": []}, "c-CAM_FRONT: camera_intrinsic must be 3x3"),
        ("calibrated_sensor", "c-CAM_FRONT", {"camera_intrinsic": [[-1, 0, 80], *K[1:]]}, "c-CAM_FRONT: the focal"),
        ("calibrated_sensor", "c-CAM_FRONT", {"camera_intrinsic": [[9, 0, 161], *K[1:]]}, "c-CAM_FRONT: the principal"),
        ("calibrated_sensor", "c-CAM_BACK", {"rotation": [0.5, -0.5, 0.5, -0.51]}, "c-CAM_BACK: rotation: the norm"),
        ("calibrated_sensor", "c-CAM_BACK", {"rotation": [1, 0, 0, 0]}, "c-CAM_BACK: the up axis is 90 degrees"),
        (
            "calibrated_sensor",
            "c-LIDAR_TOP",
            {"translation": [0, 0, float("nan")]},
            "c-LIDAR_TOP: translation must be 3",
        ),
        ("calibrated_sensor", "c-LIDAR_TOP", {"translation": [0, 0]}, "c-LIDAR_TOP: translation must be 3"),
        ("ego_pose", "e-0-LIDAR_TOP-05", {"rotation": [0, 0, 0, 0]}, "ego_pose e-0-LIDAR_TOP-05: rotation: the norm"),
        (
            "ego_pose",
            "e-0-LIDAR_TOP-05",
            {"rotation": [0.8, 0.6, 0, 0]},
            "ego_pose e-0-LIDAR_TOP-05: the up axis is 74",
        ),
        (
            "ego_pose",
            "e-0-LIDAR_TOP-05",
            {"translation": [1016.0, 2000, 0]},
            "ego_pose e-0-LIDAR_TOP-05: the pose jumps",
        ),
        (
            "ego_pose",
            "e-0-CAM_FRONT-05",
            {"translation": [1016.0, 2000, 0]},
            "ego_pose e-0-CAM_FRONT-05: the pose jumps",
        ),
        ("sample_annotation", "0-a-1", {"size": [1, 0, 1]}, "instance 0-a: a size is not positive"),
        ("sample_annotation", "0-a-1", {"rotation": [1, 0, "x", 0]}, "sample_annotation 0-a-1: rotation must be 4"),
    ],
)
def test_bad_rows_are_named(tmp_path, table, token, changes, message):
    tables = write_tables()
    row_of(tables, table, token).update(changes)
    refused(tmp_path, tables, message)


@pytest.mark.parametrize("token", ["0-LIDAR_TOP-05", "0-LIDAR_TOP-01", "0-CAM_FRONT-06"])
def test_a_row_missing_inside_a_chain(tmp_path, token):
    tables = write_tables()
    tables["sample_data"].remove(row_of(tables, "sample_data", token))
    refused(tmp_path, tables, r"sample_data 0-\w+-\d\d and 0-\w+-\d\d .*a row of sample_data is missing between them")


@pytest.mark.parametrize("bad", ["a/b", "../a", ".a", "a b", "a" * 129])
@pytest.mark.parametrize(("table", "token"), [("scene", "1"), ("sample", "0-2"), ("sample_data", "0-LIDAR_TOP-05")])
def test_tokens_that_cannot_be_file_names(tmp_path, table, token, bad):
    tables = json.loads(json.dumps(write_tables()).replace(f'"{token}"', json.dumps(bad)))
    refused(tmp_path, tables, f"^{table} '{re.escape(bad)}': the token cannot be a file name")


@pytest.mark.parametrize("table", ["ego_pose", "map", "sample_data"])
def test_missing_or_damaged_table(tmp_path, table):
    save(tmp_path, write_tables())
    path = tmp_path / VERSION / f"{table}.json"
    text = path.read_text()
    for damaged, message in (
        (text[:-5], "cannot be read as JSON"),
        ('{"a": 1}', "must be a list"),
        ("[1]", "must be a list"),
    ):
        path.write_text(damaged)
        with pytest.raises(InputError, match=rf"{table}\.json: {message}"):
            read(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=rf"{table}\.json: cannot be read"):
        read(tmp_path)


def test_what_the_devkit_refuses_and_the_tables_do_not_show(tmp_path):
    save(tmp_path, write_tables())
    (tmp_path / "map.png").unlink()
    with pytest.raises(InputError, match=r"the nuScenes devkit cannot load it \(AssertionError: .*map.png"):
        read(tmp_path)


def test_missing_version(tmp_path):
    with pytest.raises(InputError, match=r"v1.0-tiny: no such folder; .*--version"):
        read(tmp_path)


def test_the_crop_takes_the_ego_vehicle_and_nothing_beside_it(recorded):
    """Recorded returns of the vehicle end 1.8 m ahead and 0.7 m beside the LiDAR; the road begins at 2.5 m."""
    from dense_depth.accumulation import AccumulationConfig, Reason

    file = next((recorded / "nuscenes_keyframe").rglob("*LIDAR_TOP*.bin"))
    points = np.fromfile(file, np.float32).reshape(-1, 5)
    cut = cut_points(points, AccumulationConfig(min_range_m=0.0), (Crop((-1, 1), (-2, 2)),))
    near = np.abs(points[:, :2]).max(axis=1) < 2.0
    np.testing.assert_array_equal(cut.reason == Reason.EGO, near)  # all that is near, here, is the vehicle
