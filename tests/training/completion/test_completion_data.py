"""Training samples: which pixels are shown and asked for, and that every map of a frame is cut from the same place."""

import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import changed

import pipelines.runner as runner
from dense_depth import InputError
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.truth import read_truth
from dense_depth.label import Source
from pipelines.accumulate import Arguments, plan
from training.completion.data import CompletionData, Data, read_frame
from training.completion.hide import HideConfig, _lines, _rectangles, hide_part, trusted
from training.completion.view import Maps, ViewConfig, augment
from training.loop import Draws, batches

HEIGHT, WIDTH = 112, 200  # of labels at half the size
WHOLE = ViewConfig(HEIGHT, WIDTH, scale=(1.0, 1.0), colour=0.0, flip=0.0)
ALL, NO_KEY_SWEEP, SINGLE, AGES = np.eye(4)
PLAIN = HideConfig()


def hide(mode, **changes):
    return HideConfig(**{"modes": tuple(mode), "region": 0.0, "thin": 0.0, "lines": 0.0} | changes)


def make(root, store, **changes):
    arguments = Arguments(DatasetConfig("nuscenes", root, "v1.0-synth"), str(store), workers=0, scale=0.5)
    job, _ = plan(changed(arguments, **changes))
    runner.run(job, workers=0)


@pytest.fixture(scope="module")
def store(generated, tmp_path_factory):
    """Version 1 has accumulated labels, version 2 those of single sweeps as well."""
    path = tmp_path_factory.mktemp("completion") / "store"
    make(generated, path)
    make(generated, path, kind="lidar")
    return path


@pytest.fixture
def frames(generated, store):
    def open_frames(view=WHOLE, config=PLAIN, seed=0, **changes):
        one = Data(DatasetConfig("nuscenes", generated, "v1.0-synth"), str(store))
        return CompletionData([changed(one, **changes)], view, config, seed)

    return open_frames


def equal(a, b):
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in zip(a, b))


# Which frames there are


def test_options_of_the_command_line():
    short = Data.parse("dataset=nuscenes,dataroot=/d,store=s3://b/s", "--data")
    assert short == Data(DatasetConfig("nuscenes", Path("/d")), "s3://b/s")
    text = "dataset=kitti-raw, dataroot=/d,store=s,ref=good,version=v,scenes=a+b+c,truth=yes,poses=/p=1.txt,repeat=3"
    expected = Data(
        DatasetConfig("kitti-raw", Path("/d"), "v", poses="/p=1.txt"), "s", "good", ("a", "b", "c"), True, 3
    )
    assert Data.parse(text, "--data") == expected


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "none of dataset, dataroot"),
        ("dataset=nuscenes,dataroot=/d", "needs store=..."),
        ("dataset=nuscenes,store=s", "needs dataroot=..."),
        ("dataset=waymo,dataroot=/d,store=s", "dataset is one of nuscenes, kitti-raw"),
        ("dataset=nuscenes,dataroot=/d,store=s,scene=a", "'scene' is none of"),
        ("dataset=nuscenes,dataroot=/d,store=s,truth=1", "truth is yes or no"),
        ("dataset=nuscenes,dataroot=/d,store=s,repeat=0", "repeat is 1, 2, ..."),
        ("dataset=nuscenes,dataroot=/d,store=s,repeat=-1", "repeat is 1, 2, ..."),
    ],
)
def test_wrong_options(text, reason):
    with pytest.raises(InputError, match=f"^--data {re.escape(text)}: .*{re.escape(reason)}") as error:
        Data.parse(text, "--data")
    assert "\n" not in str(error.value)


def test_frames_of_a_version(frames, generated, store):
    dataset = open_dataset(DatasetConfig("nuscenes", generated, "v1.0-synth"))
    names = [scene.name for scene in dataset.scenes(())]
    assert len(frames()) == 36 and len(frames(scenes=names[:1])) == 18
    assert len(frames(scenes=names[:1], repeat=3)) == 54
    assert all(item.has_single for item in frames().items) and not any(
        item.has_single for item in frames(ref="1").items
    )
    mixed = CompletionData(
        [Data(DatasetConfig("nuscenes", generated, "v1.0-synth"), str(store), scenes=(name,)) for name in names],
        WHOLE,
        HideConfig(),
    )
    assert {item.scene_token for item in mixed.items} == {scene.token for scene in dataset.scenes(())}


def test_versions_and_datasets_that_will_not_do(frames, generated, store, tmp_path):
    def refused(text, **changes):
        with pytest.raises(InputError, match=text) as error:
            frames(**changes)
        assert "\n" not in str(error.value)

    refused("nothing", ref="nothing")
    refused("nothing", scenes=("nothing",))
    make(generated, tmp_path / "lidar", kind="lidar")
    refused("no accumulated labels .* make them with", store=str(tmp_path / "lidar"))
    for name in ("maps", "samples", "sweeps", "v1.0-synth"):
        (tmp_path / name).symlink_to(generated / name)
    assert len(frames(dataroot=tmp_path)) == 36
    refused("no truth for this scene", dataroot=tmp_path, truth=True)
    make(generated, tmp_path / "sizes")
    make(generated, tmp_path / "sizes", kind="lidar", scale=0.25)
    with pytest.raises(InputError, match="lidar label has another size"):
        frames(store=str(tmp_path / "sizes"))[0, 0]


def test_pose_of_the_lidar_is_where_its_points_fall_on_the_label(frames, generated):
    dataset = open_dataset(DatasetConfig("nuscenes", generated, "v1.0-synth"))
    paths = {sweep.token: sweep.path for scene in dataset.scenes(()) for sweep in scene.sweeps}
    for item in frames().items[:18:5]:
        maps = seen(item)
        points = np.fromfile(paths[item.frame.key_sweep], np.float32).reshape(-1, 5)[:, :3]
        cam = np.linalg.solve(item.lidar_SE3_cam, np.column_stack([points, np.ones(len(points))]).T)[:3]
        cam = cam[:, cam[2] > 1]
        u, v = np.floor((maps.K @ cam)[:2] / cam[2] + 0.5).astype(int)
        inside = (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
        nearest = np.full((HEIGHT, WIDTH), np.inf)
        np.minimum.at(nearest, (v[inside], u[inside]), cam[2, inside])
        both = (maps.single[0] > 0) & np.isfinite(nearest)
        assert both.sum() > 1000
        assert np.mean(np.abs(maps.single[0] - nearest)[both] < 0.01) > 0.98


# What a frame becomes


def seen(item) -> Maps:
    """All of a frame, unchanged."""
    return augment(read_frame(item), ViewConfig(HEIGHT, WIDTH, (1.0, 1.0), 0.0, 0.0), np.random.default_rng(0))


def test_equal_draws_are_equal_samples_in_any_order_and_process(frames):
    view = ViewConfig(64, 96)
    data = frames(view)
    picked = list(islice(Draws(len(data), seed=5, first=6), 6))
    forward = [data[index] for index in picked]
    fresh = frames(view)
    assert all(equal(fresh[index], sample) for index, sample in reversed(list(zip(picked, forward))))
    frame, draw = picked[0]
    assert not equal(data[frame, draw + 1], forward[0])
    assert not equal(frames(view, seed=1)[frame, draw], forward[0])
    for i, batch in enumerate(islice(batches(data, Draws(len(data), seed=5, first=6), 2, workers=1), 3)):
        for k in range(2):
            assert equal([x[k] for x in batch], forward[2 * i + k])


def test_the_whole_label_is_shown(frames):
    data = frames(config=hide(ALL, shown_weight=0.25))
    depth_m, source, age = seen(data.items[4]).label
    sample = data[4, 0]
    for x, y in zip(sample[1:5], (depth_m, source, age, depth_m)):
        np.testing.assert_array_equal(x, y)
    assert set(np.unique(sample.weight)) == {0, 0.25}
    np.testing.assert_array_equal(sample.weight > 0, trusted(depth_m, source, age, HideConfig()))
    np.testing.assert_array_equal(sample.surface == 1, depth_m > 0)
    assert sample.surface[depth_m == 0].isnan().all()
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0) * 255, seen(data.items[4]).image)


def test_without_the_key_sweep(frames):
    data = frames(config=hide(NO_KEY_SWEEP, shown_weight=0.25))
    depth_m, source, age = seen(data.items[4]).label
    sample = data[4, 0]
    hidden = source == Source.KEY_SWEEP
    assert hidden.any() and not sample.depth_m[hidden].any() and not (sample.source == Source.KEY_SWEEP).any()
    np.testing.assert_array_equal(sample.depth_m, np.where(hidden, 0, depth_m))
    np.testing.assert_array_equal(sample.age, np.where(hidden, 0, age))
    np.testing.assert_array_equal(sample.target_m, depth_m)
    assert set(np.unique(sample.weight[hidden])) <= {0, 1} and sample.weight[hidden].any()
    assert sample.weight[~hidden].max() == 0.25


def test_a_single_sweep_alone(frames):
    """From labels of kind lidar where there are any, points seen through surfaces and all; else from the other."""
    data = frames(config=hide(SINGLE))
    maps = seen(data.items[4])
    sample = data[4, 0]
    for x, y in zip(sample[1:4], maps.single):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(sample.target_m, maps.label[0])
    assert set(np.unique(sample.source)) == {0, Source.KEY_SWEEP}
    other = (maps.single[0] > 0) & (maps.single[0] != maps.label[0]) & (sample.weight.numpy() > 0)
    assert other.any() and (sample.weight[other] == 1).all()  # what it says there is not what was shown

    sample = frames(config=hide(SINGLE), ref="1")[4, 0]
    np.testing.assert_array_equal(sample.depth_m, np.where(maps.label[1] == Source.KEY_SWEEP, maps.label[0], 0))


def test_sweeps_of_some_ages(frames):
    data = frames(config=hide(AGES))
    depth_m, _, age = seen(data.items[4]).label
    subsets = set()
    for draw in range(8):
        shown = data[4, draw].depth_m.numpy() > 0
        ages = {int(a) for a in np.unique(age[shown])}
        np.testing.assert_array_equal(shown, (depth_m > 0) & np.isin(age, list(ages)))
        subsets.add(tuple(sorted(ages)))
    assert len(subsets) > 4


def test_modes_come_as_often_as_asked_for():
    """The codes of a label say which mode it was."""
    rng, counts = np.random.default_rng(0), np.zeros(3)
    label = np.ones((1, 4), np.float32), np.uint8([[1, 1, 2, 2]]), np.uint8([[0, 0, 1, 1]])
    maps = Maps(np.zeros((1, 4, 3), np.uint8), label, None, None, np.eye(3))
    for _ in range(2000):
        shown = hide_part(maps, np.eye(4), hide((5, 3, 2, 0)), rng).depth_m[0].tolist()
        counts[[[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]].index(shown)] += 1
    np.testing.assert_allclose(counts / 2000, [0.5, 0.3, 0.2], atol=0.04)


def test_rectangles_and_single_pixels_are_left_out(frames):
    data = frames()
    depth_m = seen(data.items[4]).label[0]
    for config, least in (hide(ALL, region=1.0), 0.85), (hide(ALL, thin=1.0), 0.4):
        shares = []
        for draw in range(12):
            sample = frames(config=config)[4, draw]
            shown = sample.depth_m.numpy()
            np.testing.assert_array_equal(shown, np.where(shown > 0, depth_m, 0))
            assert not sample.source[shown == 0].any() and not sample.age[shown == 0].any()
            shares.append((shown > 0).sum() / (depth_m > 0).sum())
        assert 0.05 < min(shares) < least < max(shares) <= 1
    rng = np.random.default_rng(0)
    inside = np.stack([_rectangles((HEIGHT, WIDTH), rng) for _ in range(50)])
    assert 0.05 < inside.mean() < 0.5 and inside.reshape(50, -1).any(1).all()
    edges = np.diff(inside.astype(int), axis=2, prepend=0) == 1
    assert edges.sum(2).max() <= 4


def test_truth_is_that_of_the_middle_pixel(frames, generated):
    data = frames(truth=True, config=hide(SINGLE))
    i = next(i for i in range(len(data)) if (data[i, 0].surface == 0).any())
    sample, item = data[i, 0], data.items[i]
    truth = read_truth(generated, item.scene_token, item.frame.camera)
    native = truth.depth_m[truth.sample_tokens.index(item.frame.sample_token)]
    assert native.shape == (225, 400)
    for v in range(0, HEIGHT, 7):
        for u in range(0, WIDTH, 9):
            assert sample.target_m[v, u] == native[int((v + 0.5) * 225 / HEIGHT), int((u + 0.5) * 2)]
    surface = sample.target_m > 0
    assert not surface.all()  # some of it is sky
    assert torch.equal(sample.weight, surface.float()) and torch.equal(sample.surface, surface.float())


def test_background_beside_an_edge_and_old_points_are_not_learned_from():
    depth_m, source, age = np.zeros((15, 24), np.float32), np.full((15, 24), 2, np.uint8), np.zeros((15, 24), np.uint8)
    expected = np.zeros((15, 24), bool)
    for row, column, z, good in [
        *[(4, 5, 5.0, True), (4, 8, 20.0, False), (4, 9, 20.0, True), (4, 2, 20.0, False)],  # three columns
        *[(6, 5, 20.0, False), (7, 5, 20.0, True)],  # two rows
        *[(3, 5, 5.5, True), (8, 14, 5.0, True), (8, 15, 5.6, False)],  # 5 % and 0.3 m: 5.55 m
        *[(0, 20, 30.0, True), (14, 0, 3.0, True)],  # borders
    ]:
        depth_m[row, column], expected[row, column] = z, good
    for column, (code, years, good) in enumerate(
        [(2, 10, True), (2, 11, False), (3, 5, True), (3, 6, False), (1, 10, True), (1, 31, False)]
    ):
        at = 11, 4 * column + 2
        depth_m[at], source[at], age[at], expected[at] = 10, code, years, good
    np.testing.assert_array_equal(trusted(depth_m, source, age, HideConfig()), expected)


def runs(kept, at):
    """Where bands begin and end along sorted values, without those cut at the ends."""
    edges = np.flatnonzero(np.diff(kept.astype(int)))
    starts, ends = (edges[kept[edges + 1] == wanted] for wanted in (True, False))
    ends = ends[ends > starts[0]]
    starts = starts[: len(ends)]
    return (at[starts] + at[starts + 1]) / 2, (at[ends] + at[ends + 1]) / 2


def test_lines_are_bands_of_elevation_seen_from_the_lidar():
    rng = np.random.default_rng(0)
    shape = 300, 400
    depth_m = rng.uniform(2, 60, shape).astype(np.float32)
    K = np.array([[300.0, 0.0, 200.0], [0.0, 300.0, 150.0], [0.0, 0.0, 1.0]])
    tilt = np.radians(4)
    tilted = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
    lidar_SE3_cam = np.eye(4)
    lidar_SE3_cam[:3, :3] = tilted @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    lidar_SE3_cam[:3, 3] = 0.9, 0.2, -0.5
    v, u = np.indices(shape)
    cam = np.linalg.inv(K) @ np.stack([u, v, np.ones(shape)]).reshape(3, -1) * depth_m.ravel()
    points = lidar_SE3_cam @ np.vstack([cam, np.ones(cam.shape[1])])
    elevation_deg = np.degrees(np.arcsin(points[2] / np.linalg.norm(points[:3], axis=0)))
    inner = np.flatnonzero(np.abs(elevation_deg) < 18)
    inner = inner[np.argsort(elevation_deg[inner])]

    shares = []
    for seed in range(20):
        kept = _lines(depth_m, K, lidar_SE3_cam, np.random.default_rng(seed))
        starts, ends = runs(kept.ravel()[inner], elevation_deg[inner])
        bands, periods = ends - starts, np.diff(starts)
        assert np.ptp(bands) < 0.02 and np.ptp(periods) < 0.02
        assert 0.28 < bands.mean() < 1.42 and 1.15 < periods.mean() / bands.mean() < 8.1
        shares.append(kept.mean())
        mirrored = K.copy()
        mirrored[0] = [-300.0, 0.0, shape[1] - 1 - 200.0]
        again = _lines(depth_m[:, ::-1], mirrored, lidar_SE3_cam, np.random.default_rng(seed))
        assert np.mean(again == kept[:, ::-1]) > 0.9999
    assert 0.1 < min(shares) < 0.2 and max(shares) > 0.4  # down to an eighth


def test_lines_are_left_out_of_single_sweeps_only(frames):
    for mode, all_shown in ((SINGLE, False), (ALL, True)):
        data = frames(config=hide(mode, lines=1.0))
        maps = seen(data.items[4])
        label_m = (maps.single if mode is SINGLE else maps.label)[0]
        shown = data[4, 1].depth_m.numpy()
        np.testing.assert_array_equal(shown, np.where(shown > 0, label_m, 0))
        assert ((shown > 0).sum() == (label_m > 0).sum()) == all_shown
