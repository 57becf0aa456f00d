import re
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from conftest import DATA, cut_points, write_poses
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dense_depth import InputError
from dense_depth.datasets import DatasetConfig, kitti, open_dataset
from dense_depth.geometry import in_image, invert, project, transform

RAW = DATA / "kitti_raw"
DRIVE = "2011_09_26_drive_0005_sync"
POSES = DATA / "kitti_tracking" / "orbslam3_poses" / "0000.txt"
LABELS = DATA / "kitti_tracking" / "training" / "label_02" / "0000.txt"
real = pytest.mark.skipif(not RAW.is_dir(), reason=f"needs the real drive in {RAW}")


# Real data ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_oxts():
    (scene,) = open_dataset(DatasetConfig("kitti-raw", RAW)).scenes()
    return scene


@pytest.fixture(scope="module")
def with_slam():
    (scene,) = open_dataset(DatasetConfig("kitti-raw", RAW, poses=POSES, tracks=LABELS)).scenes([DRIVE])
    return scene


def points_of(sweep):
    return np.fromfile(sweep.path, np.float32).reshape(-1, sweep.n_features)[:, :3].astype(np.float64)


def key_values(path):
    lines = [line.split(":", 1) for line in path.read_text().splitlines()]
    return {key: np.array(value.split(), float) for key, value in lines if key != "calib_time"}


@real
@pytest.mark.parametrize(
    ("mistake", "outcome"),
    [
        ("none", "good"),
        ("stretched 1.1", "noted"),
        ("late 2", "noted"),
        ("inverted", "refused"),
        ("stretched 1.5", "refused"),
        ("stretched 0.5", "refused"),
        ("swapped axes", "refused"),
        ("transposed", "refused"),
        ("late 5", "refused"),
    ],
)
def test_poses_are_compared_with_gps(tmp_path, mistake, outcome):
    """Estimated poses of the recorded drive are good; with a mistake they are refused or noted in one line."""
    poses = write_poses(tmp_path / "poses.txt", POSES, mistake)
    dataset = open_dataset(DatasetConfig("kitti-raw", RAW, poses=poses))
    if outcome == "refused":
        with pytest.raises(InputError, match=r"poses.txt: motions over a second .* compared with .*oxts; are") as error:
            list(dataset.scenes([DRIVE]))
        assert "\n" not in str(error.value)
    else:
        (scene,) = dataset.scenes([DRIVE])
        assert [bool(re.search("poses.txt: motions .* good poses differ less", note)) for note in scene.notes] == [
            True
        ] * (outcome == "noted")


@real
def test_the_bonnet_is_no_obstacle(recorded):
    """No object can be before the bumper this near, whatever the drive; the sides of the road stay.

    One drive at all its frames, three others at one frame each.
    """
    from dense_depth.accumulation import AccumulationConfig, Reason

    drives = (recorded / "kitti_raw").glob("*/*/velodyne_points/data/*.bin")
    paths = [*drives, *(recorded / "kitti_object" / "training" / "velodyne").glob("*.bin")]
    returned = []
    for path in paths:
        points = np.fromfile(path, np.float32).reshape(-1, 4)
        kept = cut_points(points, AccumulationConfig(), kitti.EGO_CROPS).reason == Reason.STATIC
        x, y, z = points[:, :3].T
        bonnet = (np.abs(x - 2.7) < 0.4) & (np.abs(y) < 0.7) & (z > -1.3)
        returned.append(bonnet.sum())
        assert not (kept & bonnet).any(), path
        beyond = (np.linalg.norm(points[:, :3], axis=1) < 80) & ((np.abs(y) > 1.6) | (np.abs(x) > 3))
        assert kept[beyond].all(), path
    assert len(paths) == 43 and sum(returned) > 50 and max(returned) < 10


@real
def test_recorded_frames(with_oxts):
    assert (with_oxts.name, with_oxts.token, with_oxts.cameras) == (DRIVE, DRIVE, ("image_02",))
    assert len(with_oxts.sweeps) == len(with_oxts.frames) == 40
    assert not with_oxts.notes
    # First line of velodyne_points/timestamps.txt: 2011-09-26 13:04:32.335337762.
    since_epoch = datetime(2011, 9, 26, 13, 4, 32, 335337, tzinfo=UTC) - datetime.fromtimestamp(0, UTC)
    assert with_oxts.sweeps[0].timestamp_us == since_epoch // timedelta(microseconds=1)
    for sweep, frame in zip(with_oxts.sweeps, with_oxts.frames):
        assert sweep.timestamp_us == frame.timestamp_us
        assert sweep.token == frame.sample_token == frame.key_sweep == f"{DRIVE}_{int(sweep.path.stem):010d}"
        assert sweep.path.stem == frame.path.stem


@real
def test_projection_counts_and_pixels(with_oxts):
    """20,478 is the count with pixel corners at integers (0 <= u < width); with centres there it is 20,454."""
    frame, points = with_oxts.frames[0], points_of(with_oxts.sweeps[0])
    cam_SE3_velo = invert(frame.world_SE3_cam) @ with_oxts.sweeps[0].world_SE3_sensor
    uv, depth = project(frame.K, transform(cam_SE3_velo, points))
    inside = (depth > 0) & (uv >= 0).all(1) & (uv[:, 0] < frame.width) & (uv[:, 1] < frame.height)
    assert (len(points), inside.sum()) == (123_397, 20_478)
    assert in_image(uv, depth, frame.width, frame.height).sum() == 20_454

    cam, velo = (key_values(RAW / "2011_09_26" / f"calib_{name}.txt") for name in ("cam_to_cam", "velo_to_cam"))
    R, T = np.eye(4), np.eye(4)
    R[:3, :3] = cam["R_rect_00"].reshape(3, 3)
    T[:3] = np.column_stack([velo["R"].reshape(3, 3), velo["T"]])
    projected = np.column_stack([points, np.ones(len(points))]) @ (cam["P_rect_02"].reshape(3, 4) @ R @ T).T
    np.testing.assert_allclose(depth, projected[:, 2], atol=1e-4)
    np.testing.assert_allclose(uv[inside], (projected[:, :2] / projected[:, 2:])[inside], atol=1e-3)


@real
@pytest.mark.parametrize(
    ("a", "b", "raw_m", "oxts_m", "slam_m"), [(0, 10, 0.860, 0.213, 0.119), (20, 30, 1.072, 0.102, 0.102)]
)
def test_poses_align_sweeps(with_oxts, with_slam, a, b, raw_m, oxts_m, slam_m):
    """Median distance from the structure points (5-30 m, z > -1.2 m) of one sweep to the nearest point of another."""
    points = points_of(with_oxts.sweeps[a])
    range_m = np.linalg.norm(points, axis=1)
    structure = points[(range_m > 5) & (range_m < 30) & (points[:, 2] > -1.2)]
    other = points_of(with_oxts.sweeps[b])

    def distance_m(a_SE3_b):
        return np.median(cKDTree(transform(a_SE3_b, other)).query(structure)[0])

    def motion(scene):
        return invert(scene.sweeps[a].world_SE3_sensor) @ scene.sweeps[b].world_SE3_sensor

    assert distance_m(np.eye(4)) == pytest.approx(raw_m, abs=0.005)
    assert distance_m(motion(with_oxts)) == pytest.approx(oxts_m, abs=0.005)
    assert distance_m(motion(with_slam)) == pytest.approx(slam_m, abs=0.005)


def world_SE3_velo_by_hand():
    """The OXTS poses of all 154 frames, each step written out."""
    imu = key_values(RAW / "2011_09_26" / "calib_imu_to_velo.txt")
    velo_SE3_imu = np.vstack([np.column_stack([imu["R"].reshape(3, 3), imu["T"]]), [0, 0, 0, 1]])
    world_SE3_imu = []
    for path in sorted((RAW / "2011_09_26" / DRIVE / "oxts" / "data").iterdir()):
        lat, lon, alt, roll, pitch, yaw = map(float, path.read_text().split()[:6])
        if not world_SE3_imu:
            scale = np.cos(lat * np.pi / 180)
        x = scale * lon * np.pi * 6378137 / 180
        y = scale * 6378137 * np.log(np.tan((90 + lat) * np.pi / 360))
        Rx = [[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]]
        Ry = [[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]]
        Rz = [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
        rotation = np.array(Rz) @ np.array(Ry) @ np.array(Rx)
        world_SE3_imu.append(np.vstack([np.column_stack([rotation, [x, y, alt]]), [0, 0, 0, 1]]))
    poses = np.array(world_SE3_imu) @ np.linalg.inv(velo_SE3_imu)
    poses[:, :3, 3] -= world_SE3_imu[0][:3, 3]
    return poses


@real
def test_oxts_poses(with_oxts):
    poses = [sweep.world_SE3_sensor for sweep in with_oxts.sweeps]
    np.testing.assert_allclose(poses, world_SE3_velo_by_hand()[:40], atol=2e-6)


@real
def test_tracklets(with_oxts):
    """Every tenth frame of the drive has 69 boxes within 35 m; points can be counted in those of frames 0 to 39."""
    poses = world_SE3_velo_by_hand()
    lines = (RAW / "2011_09_26" / DRIVE / "velodyne_points" / "timestamps.txt").read_text().splitlines()
    frame_of = {round(datetime.fromisoformat(line[:26] + "Z").timestamp() * 1e6): i for i, line in enumerate(lines)}
    world_points = [transform(sweep.world_SE3_sensor, points_of(sweep)) for sweep in with_oxts.sweeps]
    boxes_of = dict.fromkeys(("van", "car", "pedestrian", "cyclist"), 0)
    near, n_points = 0, []
    for track in with_oxts.tracks:
        boxes_of[track.category] += len(track.boxes)
        for box in track.boxes:
            frame = frame_of[box.timestamp_us]
            within_35_m = np.linalg.norm((invert(poses[frame]) @ box.world_SE3_box)[:2, 3]) < 35
            near += within_35_m and frame % 10 == 0
            if within_35_m and frame < 40:
                points_box = transform(invert(box.world_SE3_box), world_points[frame])
                n_points.append((np.abs(points_box) <= box.size_lwh_m / 2).all(axis=1).sum())
    assert boxes_of == {"van": 293, "car": 248, "pedestrian": 22, "cyclist": 154}
    assert near == 69
    assert len(n_points) == 98
    assert min(n_points) > 20


@real
def test_tracking_labels_agree_with_tracklets(with_oxts, with_slam):
    """Two label files and two pose files, and two conventions: in the LiDAR frame they are the same boxes."""
    compared = 0
    for i, (a, b) in enumerate(zip(with_oxts.sweeps, with_slam.sweeps)):
        tracklets = {track.token[-4:]: track.box_at(a.timestamp_us) for track in with_oxts.tracks}
        for track in with_slam.tracks:
            box = track.box_at(b.timestamp_us)
            if box is None:
                continue
            same = tracklets[track.token[-4:]]
            velo_SE3_track = invert(b.world_SE3_sensor) @ box.world_SE3_box
            velo_SE3_tracklet = invert(a.world_SE3_sensor) @ same.world_SE3_box
            assert np.linalg.norm(velo_SE3_track[:3, 3] - velo_SE3_tracklet[:3, 3]) < 0.1, (track.token, i)
            turn = velo_SE3_track[:3, :3].T @ velo_SE3_tracklet[:3, :3]
            assert np.degrees(Rotation.from_matrix(turn).magnitude()) < 1.0
            np.testing.assert_allclose(box.size_lwh_m, same.size_lwh_m, atol=1e-4)
            compared += 1
    assert compared == 121
    assert [t.category for t in with_oxts.tracks] == [t.category for t in with_slam.tracks]


@real
def test_slam_poses_are_those_of_camera_0(with_slam):
    """The rectified camera 02 sits 6 cm left of camera 0, whose pose the file gives."""
    row = np.array(POSES.read_text().splitlines()[7].split(), float).reshape(3, 4)
    P = key_values(RAW / "2011_09_26" / "calib_cam_to_cam.txt")["P_rect_02"].reshape(3, 4)
    centre_cam0 = -np.linalg.solve(P[:, :3], P[:, 3])  # P @ centre = 0
    np.testing.assert_allclose(
        with_slam.frames[7].world_SE3_cam[:3, 3], row[:, :3] @ centre_cam0 + row[:, 3], atol=1e-5
    )
    np.testing.assert_allclose(with_slam.frames[7].world_SE3_cam[:3, :3], row[:, :3], atol=1e-5)


# Generated drives -----------------------------------------------------------------------------------------------------

DATE = "2011_09_26"
NAME = f"{DATE}_drive_0001_sync"
CALIB = {
    "cam_to_cam": (
        "R_rect_00: 1 0 0 0 1 0 0 0 1\n"
        "S_rect_02: 40 20\nP_rect_02: 30 0 20 3 0 30 10 0 0 0 1 0.5\n"
        "S_rect_03: 40 20\nP_rect_03: 30 0 20 -15 0 30 10 0 0 0 1 0\n"
    ),
    "velo_to_cam": "R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n",
    "imu_to_velo": "R: 1 0 0 0 1 0 0 0 1\nT: -1 0 -1\n",
}
METRES_PER_DEGREE = np.pi / 180 * 6378137.0


def write_drive(root, n=4, cameras=("image_02",), name=NAME):
    """A drive along east at 10 m/s from latitude 49, yaw 0, 10 Hz."""
    date = root / DATE
    for key, text in CALIB.items():
        (date / name).mkdir(parents=True, exist_ok=True)
        (date / f"calib_{key}.txt").write_text(text)
    for folder in ("velodyne_points", "oxts", *cameras):
        (date / name / folder / "data").mkdir(parents=True)
    start = datetime(2011, 9, 26, 13, 0, 0, 123456)
    times = [(start + timedelta(milliseconds=100 * i)).isoformat(" ") + "789\n" for i in range(n)]
    (date / name / "velodyne_points" / "timestamps.txt").write_text("".join(times))
    Image.new("RGB", (40, 20)).save(root / "image.png")
    for i in range(n):
        np.zeros((3, 4), np.float32).tofile(date / name / "velodyne_points" / "data" / f"{i:010d}.bin")
        longitude = 8 + i / (METRES_PER_DEGREE * np.cos(np.radians(49)))
        row = [49, longitude, 100, 0, 0, 0, *[0] * 24]
        (date / name / "oxts" / "data" / f"{i:010d}.txt").write_text(" ".join(map(repr, row)))
        for camera in cameras:
            shutil.copy(root / "image.png", date / name / camera / "data" / f"{i:010d}.png")
    return date / name


def tracklets_xml(poses, first=1):
    items = "".join(
        f"<item><tx>{x}</tx><ty>{y}</ty><tz>{z}</tz><rx>0</rx><ry>0</ry><rz>{yaw}</rz></item>" for x, y, z, yaw in poses
    )
    return (
        "<boost_serialization><tracklets><count>1</count><item><objectType>Car</objectType><h>2</h><w>1.5</w><l>4</l>"
        f"<first_frame>{first}</first_frame><poses><count>{len(poses)}</count>{items}</poses></item>"
        "</tracklets></boost_serialization>"
    )


def read(root, **options):
    return list(open_dataset(DatasetConfig("kitti-raw", root, **options)).scenes())


def test_geometry_of_a_hand_made_drive(tmp_path):
    drive = write_drive(tmp_path, cameras=("image_02", "image_03"))
    (drive / "tracklet_labels.xml").write_text(tracklets_xml([(10, 2, -1.7, np.pi / 2)] * 2))
    (scene,) = read(tmp_path)
    # The LiDAR is 1 m ahead of and 1 m above the IMU, the drive goes along x, 1 m per frame.
    for i, sweep in enumerate(scene.sweeps):
        np.testing.assert_allclose(sweep.world_SE3_sensor[:3, 3], [1 + i, 0, 1], atol=1e-6)
    assert [sweep.timestamp_us % 1_000_000 for sweep in scene.sweeps] == [123456, 223456, 323456, 423456]
    # P = K [I | t]: 02 has t = (3 - 20 * 0.5) / 30, -10 * 0.5 / 30, 0.5, which is minus its place.
    left = scene.frames_of("image_02")[0]
    np.testing.assert_allclose(
        transform(invert(left.world_SE3_cam), np.array([[1.0, 0, 1]]))[0], [-7 / 30, -1 / 6, 0.5]
    )
    right = scene.frames_of("image_03")[2]
    np.testing.assert_allclose(right.world_SE3_cam[:3, 3], [3, -0.5, 1], atol=1e-6)
    np.testing.assert_allclose(right.world_SE3_cam[:3, 2], [1, 0, 0], atol=1e-9)  # looks ahead
    (track,) = scene.tracks
    assert (track.category, len(track.boxes)) == ("car", 2)
    assert [box.timestamp_us for box in track.boxes] == [sweep.timestamp_us for sweep in scene.sweeps[1:3]]
    # Bottom (10, 2, -1.7) in the LiDAR at (2, 0, 1), height 2; heading left.
    np.testing.assert_allclose(track.boxes[0].world_SE3_box[:3, 3], [12, 2, 0.3], atol=1e-6)
    np.testing.assert_allclose(track.boxes[0].world_SE3_box[:3, 0], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(track.boxes[0].size_lwh_m, [4, 1.5, 2])
    # The object keeps its place before the car, so it drives as fast.
    np.testing.assert_allclose(track.boxes[1].velocity_mps, [10, 0, 0], atol=1e-4)
    assert (track.boxes[0].n_points, track.boxes[0].attribute) == (None, "")
    assert [keyframe.sample_token for keyframe in scene.keyframes] == [frame.sample_token for frame in scene.frames[:4]]
    assert [len(scene.boxes_of(keyframe)) for keyframe in scene.keyframes] == [0, 1, 1, 0]
    assert scene.boxes_of(scene.keyframes[2]) == [(track, track.boxes[1])]
    np.testing.assert_array_equal(scene.keyframes[3].world_SE3_ego, scene.sweeps[3].world_SE3_sensor)
    assert open_dataset(DatasetConfig("kitti-raw", tmp_path)).splits() == {}


def test_oxts_rotation_order(tmp_path):
    drive = write_drive(tmp_path, 1)
    path = drive / "oxts" / "data" / "0000000000.txt"
    row = path.read_text().split()
    path.write_text(" ".join([*row[:3], "0.1", "-0.2", "2.0", *row[6:]]))
    (scene,) = read(tmp_path)
    world_R_imu = Rotation.from_euler("xyz", [0.1, -0.2, 2.0]).as_matrix()  # extrinsic: roll first
    np.testing.assert_allclose(scene.sweeps[0].world_SE3_sensor[:3, :3], world_R_imu, atol=1e-9)


def test_tracking_label_by_hand(tmp_path):
    write_drive(tmp_path)
    (tmp_path / "labels.txt").write_text(
        "1 -1 DontCare -1 -1 -10 0 0 1 1 -1000 -1000 -1000 -10 -1 -1 -1\n"
        "1 5 Pedestrian 0 0 0 0 0 1 1 2 0.6 0.8 3 1.7 10 -1.5707963267948966\n"
    )
    (scene,) = read(tmp_path, tracks=tmp_path / "labels.txt")
    (track,) = scene.tracks
    assert (track.token, track.category) == ("track_0005", "pedestrian")
    # 3 m right, bottom 1.7 m below, 10 m ahead of camera 0, which is at (2, 0, 1); ry = -90 degrees looks ahead.
    np.testing.assert_allclose(track.boxes[0].world_SE3_box[:3, 3], [12, -3, 0.3], atol=1e-6)
    np.testing.assert_allclose(track.boxes[0].world_SE3_box[:3, :3], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(track.boxes[0].size_lwh_m, [0.8, 0.6, 2])


def test_boxes_only_where_the_pose_is_known(tmp_path):
    drive = write_drive(tmp_path)
    (drive / "tracklet_labels.xml").write_text(tracklets_xml([(10, 2, -1.7, 0)] * 9, first=2))
    (scene,) = read(tmp_path)
    assert [len(track.boxes) for track in scene.tracks] == [2]


def test_holes_are_named(tmp_path):
    drive = write_drive(tmp_path, 12, cameras=("image_02", "image_03"))
    for i in (3, 4, 5, 7):
        (drive / "velodyne_points" / "data" / f"{i:010d}.bin").unlink()
    (drive / "velodyne_points" / "data" / "0000000011.bin").unlink()
    (drive / "image_03" / "data" / "0000000006.png").unlink()
    (drive / "image_03" / "data" / "0000000000.png").unlink()
    (scene,) = read(tmp_path)
    assert [int(sweep.path.stem) for sweep in scene.sweeps] == [0, 1, 2, 6, 8, 9, 10]
    assert [int(frame.path.stem) for frame in scene.frames_of("image_02")] == [0, 1, 2, 6, 8, 9, 10]
    assert [int(frame.path.stem) for frame in scene.frames_of("image_03")] == [1, 2, 8, 9, 10]
    assert [note.removeprefix(f"{NAME}: ") for note in scene.notes] == [
        "hole: velodyne_points has no frame 3-5, 7",
        "hole: image_03 has no frame 6",
        "image_02 frame 3-5, 7, 11 left out: there is no sweep",
        "image_03 frame 3-5, 7, 11 left out: there is no sweep",
        "no tracklet_labels.xml, so there are no tracks",
    ]


def test_empty_time_of_a_frame_without_sweep(tmp_path):
    drive = write_drive(tmp_path)
    times = drive / "velodyne_points" / "timestamps.txt"
    lines = times.read_text().splitlines()
    times.write_text("\n".join([lines[0], "", *lines[2:]]))
    with pytest.raises(InputError, match=r"timestamps.txt:2: no time for frame 1"):
        read(tmp_path)
    (drive / "velodyne_points" / "data" / "0000000001.bin").unlink()
    assert len(read(tmp_path)[0].sweeps) == 3


def test_long_drives_are_split(tmp_path):
    drive = write_drive(tmp_path, 450)
    (drive / "tracklet_labels.xml").write_text(tracklets_xml([(10, 2, -1.7, 0)] * 60, first=0))
    write_drive(tmp_path, 2, name=f"{DATE}_drive_0002_sync")
    dataset = open_dataset(DatasetConfig("kitti-raw", tmp_path))
    parts = [f"{NAME}.00{i}" for i in range(3)]
    assert dataset.scene_names == (*parts, f"{DATE}_drive_0002_sync")
    scenes = list(dataset.scenes([NAME]))
    assert [scene.name for scene in scenes] == [scene.token for scene in scenes] == parts
    assert [len(scene.frames) for scene in scenes] == [200, 200, 50]
    assert [[int(scene.sweeps[i].path.stem) for i in (0, -1)] for scene in scenes] == [[0, 249], [150, 449], [350, 449]]
    assert [len(scene.tracks) for scene in scenes] == [1, 0, 0]
    assert [len(scene.keyframes) for scene in scenes] == [200, 200, 50]
    np.testing.assert_allclose(scenes[2].sweeps[0].world_SE3_sensor[:3, 3], [351, 0, 1], atol=1e-5)  # one world
    (middle,) = dataset.scenes([parts[1]])
    assert middle.frames[0].sample_token == f"{NAME}_0000000200"
    assert [scene.name for scene in dataset.scenes()] == list(dataset.scene_names)


def test_selection(tmp_path):
    write_drive(tmp_path, cameras=("image_02", "image_03"))
    write_drive(tmp_path, name=f"{DATE}_drive_0002_sync")
    assert [scene.cameras for scene in read(tmp_path)] == [("image_02", "image_03"), ("image_02",)]
    (scene,) = open_dataset(DatasetConfig("kitti-raw", tmp_path, cameras=("image_03",))).scenes([NAME])
    assert scene.cameras == ("image_03",)
    with pytest.raises(InputError, match=r"scene 2011: not known; the 2 scenes are .*drive_0001_sync, .*drive_0002"):
        open_dataset(DatasetConfig("kitti-raw", tmp_path)).scenes(["2011"])
    with pytest.raises(InputError, match=r"camera image_00: not in .*; there are image_02, image_03"):
        open_dataset(DatasetConfig("kitti-raw", tmp_path, cameras=("image_00",)))
    with pytest.raises(
        InputError, match=r"drive_0002_sync: no frame has a file in velodyne_points/data and .*image_03"
    ):
        read(tmp_path, cameras=("image_03",))
    with pytest.raises(InputError, match="--poses and --tracks are for one drive"):
        read(tmp_path, poses=tmp_path / "poses.txt")
    with pytest.raises(InputError, match="no drive; expected folders like"):
        open_dataset(DatasetConfig("kitti-raw", tmp_path / DATE))


def test_jpeg_images(tmp_path):
    drive = write_drive(tmp_path, 1)
    Image.new("RGB", (40, 20)).save(drive / "image_02" / "data" / "0000000000.jpg")
    (drive / "image_02" / "data" / "0000000000.png").unlink()
    assert read(tmp_path)[0].frames[0].path.suffix == ".jpg"


def substitute(path, pattern, replacement):
    text, count = re.subn(pattern, replacement, path.read_text(), count=1)
    assert count, f"{pattern} is not in {path}"
    path.write_text(text)


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "message"),
    [
        ("calib_cam_to_cam.txt", "R_rect_00: 1", "R_rect_00: -1", "calib_cam_to_cam.txt: R_rect_00 is not a rotation"),
        ("calib_cam_to_cam.txt", "R_rect_00", "R_rect_xx", "calib_cam_to_cam.txt: R_rect_00 is missing"),
        (
            "calib_cam_to_cam.txt",
            "P_rect_02: 30",
            "P_rect_02: x",
            "calib_cam_to_cam.txt: P_rect_02: expected 12 finite",
        ),
        ("calib_cam_to_cam.txt", "P_rect_02: 30", "P_rect_02: 30 30", "P_rect_02: expected 12 finite"),
        ("calib_cam_to_cam.txt", "P_rect_02: 30", "P_rect_02: nan", "P_rect_02: expected 12 finite"),
        ("calib_cam_to_cam.txt", "P_rect_02: 30", "P_rect_02: -30", "P_rect_02: the focal lengths"),
        ("calib_cam_to_cam.txt", "30 0 20 3 0 30 10 0 0 0 1", "30 0 0 3 0 30 0 0 20 10 1", "P_rect_02.*transposed"),
        ("calib_cam_to_cam.txt", "30 0 20 3", "30 0 50 3", "P_rect_02: the principal point"),
        ("calib_cam_to_cam.txt", "S_rect_02: 40", "S_rect_02: 41", r"0000000000.png: \(40, 20\) pixels, but S_rect_02"),
        ("calib_velo_to_cam.txt", "R: 0 -1 0", "R: 0 1 0", "calib_velo_to_cam.txt: R is not a rotation"),
        ("calib_velo_to_cam.txt", ".*", "R: 0 0 1 -1 0 0 0 -1 0", "calib_velo_to_cam.txt: R: the up axis.*transposed"),
        ("calib_velo_to_cam.txt", "T: 0", "T: inf", "calib_velo_to_cam.txt: T: expected 3 finite"),
        ("calib_imu_to_velo.txt", "T: .*", "", "calib_imu_to_velo.txt: T is missing"),
        (f"{NAME}/oxts/data/0000000002.txt", "49", "west", "0000000002.txt: expected 6 finite"),
        (f"{NAME}/oxts/data/0000000002.txt", "49", "49.001", "oxts/data, frame 2: the pose jumps: 1[0-9]{3} m/s"),
        (f"{NAME}/oxts/data/0000000002.txt", "100 0", "100 3", "0000000002.txt: the up axis"),
        (f"{NAME}/velodyne_points/timestamps.txt", "13:00:00.323", "13:00:99.323", "timestamps.txt:3: expected a time"),
        (f"{NAME}/velodyne_points/timestamps.txt", "00.323456", "00.223456", "timestamps.txt:3: .*not later"),
        (f"{NAME}/velodyne_points/timestamps.txt", ".*00.423.*\n", "", "timestamps.txt:4: no time for frame 3"),
        (f"{NAME}/tracklet_labels.xml", "<tx>10", "<tx>ten", "tracklet_labels.xml: tracklet 0, frame 1: .* expected 4"),
        (f"{NAME}/tracklet_labels.xml", "<h>2", "<h>-2", "tracklet_labels.xml: tracklet_0000, frame 1: a size"),
        (f"{NAME}/tracklet_labels.xml", "</poses>", "", "tracklet_labels.xml: malformed"),
        (f"{NAME}/tracklet_labels.xml", "<first_frame>1", "<first_frame>", "tracklet_labels.xml: malformed"),
        ("poses.txt", "^1 0 0", "1 0", "poses.txt:1: expected 12 finite"),
        ("poses.txt", "\n1 0 0", "\n1 0 O", "poses.txt:2: expected 12 finite"),
        ("poses.txt", "\n1 0 0", "\n-1 0 0", "poses.txt:2: .*not a rotation"),
        ("poses.txt", "^.*\n", "", "poses.txt:3: the file has 3 poses, but the drive has 4 frames"),
        ("poses.txt", "0 0 1 2\n", "0 0 1 20\n", "poses.txt, frame 2: the pose jumps"),
        ("labels.txt", " 0 0 1 1", "", "labels.txt:1: expected 17 columns, found 13"),
        ("labels.txt", "0.6", "thin", "labels.txt:1: expected 16 finite"),
        ("labels.txt", "\n1 5", "\n0 5", "labels.txt:2: object 5 is in frame 0 twice"),
    ],
)
def test_bad_input_is_named(tmp_path, file, pattern, replacement, message):
    drive = write_drive(tmp_path)
    (drive / "tracklet_labels.xml").write_text(tracklets_xml([(10, 2, -1.7, 0)] * 2))
    rows = "".join(f"1 0 0 0 0 1 0 0 0 0 1 {i}\n" for i in range(4))
    (tmp_path / DATE / "poses.txt").write_text(rows)
    labels = "".join(f"{i} 5 Car 0 0 0 0 0 1 1 2 0.6 0.8 3 1.7 10 0\n" for i in range(2))
    (tmp_path / DATE / "labels.txt").write_text(labels)
    option = {"poses.txt": "poses", "labels.txt": "tracks"}.get(file)
    options = {option: tmp_path / DATE / file} if option else {}
    assert len(read(tmp_path, **options)[0].tracks) == 1  # good before
    substitute(tmp_path / DATE / file, pattern, replacement)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (f"{NAME}/oxts/data/0000000001.txt", "oxts/data: no pose for frame 1"),
        (f"{NAME}/velodyne_points/timestamps.txt", "timestamps.txt: cannot be read"),
        ("calib_cam_to_cam.txt", "calib_cam_to_cam.txt: cannot be read"),
    ],
)
def test_missing_file_is_named(tmp_path, file, message):
    write_drive(tmp_path)
    (tmp_path / DATE / file).unlink()
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_poses_without_gps_are_not_compared(tmp_path):
    drive = write_drive(tmp_path, 30)
    (tmp_path / "poses.txt").write_text("".join(f"1 0 0 0 0 1 0 0 0 0 1 {i}\n" for i in range(30)))
    assert not [note for note in read(tmp_path, poses=tmp_path / "poses.txt")[0].notes if "poses" in note]
    (tmp_path / "sideways.txt").write_text("".join(f"1 0 0 {i} 0 1 0 0 0 0 1 0\n" for i in range(30)))
    with pytest.raises(InputError, match=r"sideways.txt: motions over a second .* go 90 degrees beside"):
        read(tmp_path, poses=tmp_path / "sideways.txt")
    shutil.rmtree(drive / "oxts")
    (note,) = [note for note in read(tmp_path, poses=tmp_path / "poses.txt")[0].notes if "poses" in note]
    assert "poses.txt: not compared with GPS/IMU poses: " in note
    with pytest.raises(InputError, match=r"sideways.txt: the vehicle mostly goes sideways, 90 degrees"):
        read(tmp_path, poses=tmp_path / "sideways.txt")


def test_damaged_image_and_empty_drive(tmp_path):
    drive = write_drive(tmp_path, 1)
    (drive / "image_02" / "data" / "0000000000.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"0000000000.png: not an image"):
        read(tmp_path)
    shutil.rmtree(drive / "image_02")
    with pytest.raises(InputError, match="no frame has a file in velodyne_points/data and one in image_02/data"):
        read(tmp_path)


def test_ranges():
    assert kitti._ranges([3]) == "3"
    assert kitti._ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert kitti._ranges([]) == ""


def test_the_poses_of_gps_are_rough_and_sweeps_are_deskewed_unless_told_otherwise(recorded):
    root, poses = recorded / "kitti_raw", recorded / "kitti_tracking" / "orbslam3_poses" / "0000.txt"

    def read(**options):
        return next(iter(open_dataset(DatasetConfig("kitti-raw", root, **options)).scenes()))

    assert read().rough_poses and not read(poses=str(poses)).rough_poses
    found = {deskew: read(deskew=deskew).sweeps[3].compensated for deskew in ("auto", "on", "off")}
    assert found == {"auto": False, "on": False, "off": True}
