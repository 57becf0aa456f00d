"""Where a moving object was dropped, nothing behind it is labelled."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import CONFIG, K, yaw_pose
from scipy.spatial.transform import Rotation

from dense_depth.accumulation import AccumulationConfig, Occluders, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import Box, CameraFrame, Scene, Sweep, Track
from dense_depth.datasets.truth import read_truth
from dense_depth.geometry import invert, se3, transform, unproject
from dense_depth.projection import EMPTY_KEY, VisibilityConfig, gather, leave_out_behind, new_keys, render_label

DROP = replace(CONFIG, dynamics="drop")
CAMERA_AXES = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
TIME_US = 1_000_000
HEIGHT, WIDTH = 50, 100


def enters(box_SE3_cam, half, points_cam, grow_m=0.0):
    """Whether the way from the camera to each point leads through a box: by trying 4000 places along it."""
    inside = np.zeros(len(points_cam), bool)
    for share in np.linspace(0, 1, 4000):
        inside |= (np.abs(transform(box_SE3_cam, share * points_cam)) < half + grow_m).all(1)
    return inside


@pytest.mark.parametrize("seed", range(20))
def test_a_pixel_is_left_out_where_the_way_to_it_leads_through_a_box(seed):
    """Boxes anywhere: before the camera, behind it, beside it, across its plane, and around it."""
    rng = np.random.default_rng(seed)
    half = rng.uniform(0.1, 4, 3)
    cam_SE3_box = se3(Rotation.random(random_state=rng).as_matrix(), rng.uniform([-8, -4, -6], [8, 4, 25]))
    if seed == 0:
        cam_SE3_box[:3, 3] = cam_SE3_box[:3, :3] @ half / 2
    v, u = np.nonzero(rng.random((HEIGHT, WIDTH)) < 0.3)
    steps = rng.integers(0.1 * 256, 40 * 256, len(v))
    keys = new_keys(HEIGHT, WIDTH)
    keys[v, u] = steps << 8 | 2 << 5
    pixels = gather(keys, slice(0, HEIGHT))
    left = leave_out_behind(pixels, K, Occluders(cam_SE3_box[None], -half[None], half[None]))
    kept = np.zeros((HEIGHT, WIDTH), bool)
    kept[np.repeat(np.arange(HEIGHT), np.diff(left.start)), left.u] = True
    kept = kept[v, u]
    assert left.key.tolist() == pixels.key[kept].tolist()
    points = unproject(K, np.column_stack([u, v]).astype(float), steps / 256)
    box_SE3_cam = invert(cam_SE3_box)
    if (np.abs(box_SE3_cam[:3, 3]) < half).all():
        assert kept.all()
        return
    assert not kept[enters(box_SE3_cam, half, points, -0.01)].any()
    assert kept[~enters(box_SE3_cam, half, points, 0.01)].all()


def street(tmp_path, speed_mps=10.0, at_m=(10.0, 0.0, 0.0), times_s=(0.5, 1.0, 1.5)):
    """A wall 20 m ahead, five posts 5 m ahead, and a cube of 2 m that crosses; one sweep, 50 ms before the image."""
    y, z = (grid.ravel() for grid in np.mgrid[-8.9:9:0.2, -3.9:4:0.2])  # a point in the middle of each pixel
    wall = np.column_stack([np.full(len(y), 20.0), y, z])
    posts = np.array([[5.0, y, 0.12] for y in (-2, -0.43, 0.02, 0.43, 2)])
    on_cube = np.array([[-1.0, y, z] for y in (-0.5, 0, 0.5) for z in (-0.5, 0.5)]) + at_m
    points = np.concatenate([wall, posts, on_cube])
    np.column_stack([points, np.zeros((len(points), 2))]).astype(np.float32).tofile(tmp_path / "0.bin")
    x, y, z = at_m
    boxes = [Box(round(1e6 * t), yaw_pose(0, x, y + speed_mps * (t - 1), z), np.full(3, 2.0)) for t in times_s]
    sweep = Sweep("s", tmp_path / "0.bin", 5, TIME_US - 50_000, np.eye(4), ())
    pose = se3(CAMERA_AXES, np.zeros(3))
    frame = CameraFrame("k", "CAM", tmp_path / "k.jpg", TIME_US, WIDTH, HEIGHT, K, pose, "s")
    return Scene("test", "scene", "scene", (sweep,), (frame,), (Track("t", "car", tuple(boxes)),)), frame


def rendered(scene, frame, config):
    cloud, untested = SceneCloud(scene, [frame], config), VisibilityConfig(visibility="none")
    keys = new_keys(HEIGHT, WIDTH)
    label, stats = render_label(cloud, frame, K, untested, keys)
    assert (keys == EMPTY_KEY).all()
    return label.depth_m, stats


def test_the_wall_behind_a_dropped_object_is_not_labelled(tmp_path):
    scene, frame = street(tmp_path)
    whole, stats = rendered(scene, frame, replace(CONFIG, dynamics="none"))
    assert stats.n_behind_dropped == 0 and {5, 9, 20} == set(whole[whole > 0])
    carried, stats = rendered(scene, frame, CONFIG)
    assert stats.n_behind_dropped == 0 and ((carried > 0) == (whole > 0)).all()
    # The front is 9 m away, and its borders 1 m off; the margin is 0.1 m on all sides but the bottom.
    front_m = 8.9
    y, z = (49.5 - np.arange(WIDTH)) / 100 * front_m, (24.5 - np.arange(HEIGHT)[:, None]) / 100 * front_m
    silhouette = (np.abs(y) < 1.1) & (z > -1) & (z < 1.1)
    dropped, stats = rendered(scene, frame, DROP)
    assert set(dropped[silhouette]) == {0, 5} and (dropped == 5).sum() == 5  # posts before it stay
    assert (dropped[~silhouette] == whole[~silhouette]).all() and (dropped[~silhouette] == 20).sum() > 1000
    assert stats.n_behind_dropped == (silhouette & (whole > 5)).sum() > 400


@pytest.mark.parametrize(
    ("why", "given", "changes"),
    [
        ("it is parked", {"speed_mps": 0.0}, {}),
        ("it stands behind the camera", {"at_m": (-10.0, 0.0, 0.0)}, {}),
        ("it stands beside the view", {"at_m": (3.0, 12.0, 0.0)}, {}),
        ("nobody knows where it is by then", {"times_s": (0.0, 0.5)}, {"lost_s": 0.46}),
        ("the camera is inside", {"at_m": (0.0, 0.0, 0.0)}, {}),
    ],
)
def test_an_object_hides_nothing_if(tmp_path, why, given, changes):
    scene, frame = street(tmp_path, **given)
    none, drop = (
        rendered(scene, frame, replace(CONFIG, **changes, dynamics=dynamics)) for dynamics in ("none", "drop")
    )
    assert drop[1].n_behind_dropped == 0
    assert (drop[0][none[0] == 20] == 20).all() and (none[0] == 20).any()


def labels_on_movers(scene, frames, dynamics, limits_m):
    """How many labels lie where a moving object is seen, and how many of them are farther than the limits there."""
    cloud = SceneCloud(scene, frames, AccumulationConfig(dynamics=dynamics))
    keys = new_keys(frames[0].height, frames[0].width)
    labels = [render_label(cloud, frame, frame.K, VisibilityConfig(), keys)[0].depth_m for frame in frames]
    on = [(depth_m > 0) & (limit_m > 0) for depth_m, limit_m in zip(labels, limits_m)]
    behind = [is_on & (depth_m > limit_m) for is_on, depth_m, limit_m in zip(on, labels, limits_m)]
    return np.count_nonzero(on), np.count_nonzero(behind)


def test_on_generated_data_labels_do_not_lie_behind_what_moves(generated):
    """The pixels that show an object with a track that moves, and their exact depth."""
    n_on, n_behind, n_carried = 0, 0, 0
    for scene in open_dataset(DatasetConfig("nuscenes", generated, "v1.0-synth")).scenes():
        moving = {track.token for track in scene.tracks if track.travel_m > 0.5}
        limits_m = []
        for frame in scene.frames:
            truth = read_truth(generated, scene.token, frame.camera)
            at = truth.sample_tokens.index(frame.sample_token)
            depth_m, instance = np.asarray(truth.depth_m[at]), np.asarray(truth.instance[at])
            shown = np.array([False, *(token in moving for token in truth.instance_tokens)])[instance]
            limits_m.append(np.where(shown, 1.05 * depth_m + 0.5, 0))
        on, behind = labels_on_movers(scene, scene.frames, "drop", limits_m)
        n_on, n_behind = n_on + on, n_behind + behind
        n_carried += labels_on_movers(scene, scene.frames, "boxes", limits_m)[0]
    # What is left are labels before the objects: their points outside their boxes, and ghosts.
    assert n_behind == 0 and n_on < 0.01 * n_carried


def test_on_recorded_data_labels_do_not_lie_behind_cyclist_and_van(recorded):
    """In the boxes' silhouettes, here by rays that try both borders of each box along each axis."""
    reader = open_dataset(DatasetConfig("kitti-raw", recorded / "kitti_raw"))
    scene = next(iter(reader.scenes(["2011_09_26_drive_0005_sync"])))
    frames = scene.frames_of("image_02")[10:30:5]
    u, v = np.meshgrid(np.arange(frames[0].width), np.arange(frames[0].height))
    limits_m = []
    for frame in frames:
        directions = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(frame.K).T
        nearest = np.full(u.shape, np.inf)
        for track in scene.tracks:
            box = track.box_at(frame.timestamp_us)
            if track.travel_m < 20 or box is None:
                continue
            box_SE3_cam = invert(box.world_SE3_box) @ frame.world_SE3_cam
            along, origin = directions @ box_SE3_cam[:3, :3].T, box_SE3_cam[:3, 3]
            for axis in range(3):
                for border in (-0.5, 0.5):
                    depth = (border * box.size_lwh_m[axis] - origin[axis]) / along[..., axis]
                    at = origin + depth[..., None] * along
                    others = [other for other in range(3) if other != axis]
                    meets = (np.abs(at[..., others]) < box.size_lwh_m[others] / 2).all(-1) & (depth > 0)
                    nearest = np.where(meets, np.minimum(nearest, depth), nearest)
        limits_m.append(np.where(np.isfinite(nearest), nearest, 0))
    n_on, n_behind = labels_on_movers(scene, frames, "drop", limits_m)
    assert n_behind == 0
    assert n_on < 0.1 * labels_on_movers(scene, frames, "none", limits_m)[0]
