"""Shards against plain zarr and exact arithmetic, and under injected faults."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from conftest import SHAPE, assert_label, content
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_depth import InputError
from dense_depth.label import Label, Points, Source, dequantise, quantise
from dense_depth.shards import CorruptShardError, FileEntry, ShardContent, ShardFiles, ShardReader, write_shard
from dense_depth.store import Folder, open_store

FILLS = {"row_start": 2**32 - 1, "column_gap": 65535, "depth_step": 65535, "code": 255, "confidence": 0}
ARRAYS = tuple(FILLS)
FILES = ("zarr.json", *(f"{name}/{file}" for name in ARRAYS for file in ("zarr.json", "c/0/0")))


def reader(store, shard: ShardFiles) -> ShardReader:
    return ShardReader(store, shard.path, shard.files, n_frames=SHAPE[0], height=SHAPE[1], width=SHAPE[2])


# ---- quantisation


def test_quantise_hand_worked():
    steps = quantise(np.array([0, 1 / 512, 0.0019531, 10, 10 + 1 / 512, 10.0019, 255.9899], np.float32))
    assert steps.tolist() == [0, 1, 0, 2560, 2561, 2560, 65533]
    assert steps.dtype == np.uint16
    below_half = np.nextafter(np.float32(0.5), np.float32(0)) / np.float32(256)  # + 0.5 would round to 1 in float32
    assert quantise(np.array([below_half])).tolist() == [0]
    metres = dequantise(steps)
    assert metres.dtype == np.float32
    assert metres.tolist() == [0, 1 / 256, 0, 10, 2561 / 256, 10, 65533 / 256]


@given(st.floats(0, 255.984375, width=32))
def test_quantise_is_exact_rounding(depth_m):
    expected = math.floor(Fraction(depth_m) * 256 + Fraction(1, 2))
    assert quantise(np.array([depth_m], np.float32)).tolist() == [expected]
    assert quantise(np.array([depth_m], np.float64)).tolist() == [expected]


@pytest.mark.parametrize("depth_m", [-0.001, math.nan, math.inf, -math.inf, 255.99, 256, 1e30])
def test_quantise_refuses(depth_m):
    with pytest.raises(ValueError, match="finite"):
        quantise(np.array([1, depth_m]))


# ---- round trip


def relabelled(labels: ShardContent, **changes) -> ShardContent:
    """With the points of frame 1 changed, or other things of its label."""
    label = labels.labels[1]
    of_points = {name: changes.pop(name) for name in tuple(changes) if name in Points._fields}
    label = dataclasses.replace(label, labelled=label.labelled._replace(**of_points), **changes)
    return dataclasses.replace(labels, labels=(labels.labels[0], label, *labels.labels[2:]))


def one_label(points: Points, height: int, width: int) -> ShardContent:
    label = Label(points, height, width, np.eye(3), "token", "CAM_FRONT", 7)
    return content(labels=(label,), n_sweeps=(1,))


def written_and_read(store, labels: ShardContent) -> Label:
    shard, label = write_shard(store, labels), labels.labels[0]
    opened = ShardReader(store, shard.path, shard.files, n_frames=1, height=label.height, width=label.width)
    return opened.read(0)


def assert_points(points: Points, expected: Points) -> None:
    for name, one, other in zip(Points._fields, points, expected):
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other, name)


def assert_plain(group, t: int, expected: Points) -> None:
    """The decoder that docs/format.md shows, run on plain zarr, finds these points."""
    text = (Path(__file__).parents[2] / "docs/format.md").read_text()
    names = {"np": np, "group": group, "t": t}
    exec(text.split("```python\n")[1].split("```")[0], names)
    for name, values in zip(Points._fields, expected):
        np.testing.assert_array_equal(names[name], values, name)


@pytest.mark.parametrize("fraction", [0, 0.06, 0.9, 1])
@pytest.mark.parametrize("confidence", [True, False])
def test_round_trip_and_plain_zarr(tmp_path, fraction, confidence):
    labels = content(1, fraction, confidence)
    shard = write_shard(tmp_path, labels)
    opened = reader(tmp_path, shard)
    for t in range(SHAPE[0]):
        assert_label(opened.read(t), labels, t)
        assert_points(opened.read(t).points(), labels.labels[t].points())
    assert opened.verify() == []
    assert os.listdir(tmp_path / "staging") == []

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(tmp_path / shard.path, mode="r")
    arrays = dict(group.arrays())
    assert sorted(arrays) == sorted(ARRAYS if confidence else ARRAYS[:-1])
    longest = max(1, *(len(label.points().u) for label in labels.labels))
    for t, label in enumerate(labels.labels):
        assert_plain(group, t, label.points())
        for name, array in arrays.items():
            n = SHAPE[1] + 1 if name == "row_start" else len(label.points().u)
            assert (array[t, :n] != FILLS[name]).all()  # what counts never looks like a lost chunk
            assert (array[t, n:] == FILLS[name]).all()
            assert google_crc32c.value(array[t, :n]) == group.attrs["frame_crc32c"][name][t]
    for name, array in arrays.items():
        length = SHAPE[1] + 1 if name == "row_start" else longest
        assert (array.shape, array.chunks, array.shards) == ((4, length), (1, length), (4, length))
        assert array.fill_value == FILLS[name]
    attributes = group.attrs.asdict()
    assert attributes["schema_version"] == 2
    assert attributes["sample_tokens"] == list(labels.sample_tokens)
    assert attributes["n_sweeps"] == [9, 8, 7, 6]
    assert attributes["depth_unit"] == "1/256 m"
    assert attributes["image_size"] == {"width": 32, "height": 24}


def test_zarr_itself_writes_the_same_metadata(tmp_path):
    """And, from the values that it reads, data files of the same size."""
    shard = write_shard(tmp_path, content(2, 0.5))
    for name, array in zarr.open_group(tmp_path / shard.path, mode="r").arrays():
        item = array.dtype.itemsize
        blosc = zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=item, blocksize=0)
        zarr.create_array(
            tmp_path / "other" / name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.chunks,
            shards=array.shards,
            compressors=[blosc if item > 1 else zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()],
            fill_value=array.fill_value,
            dimension_names=("frame", "row" if name == "row_start" else "point"),
            config={"write_empty_chunks": True},
        )[...] = array[...]
        theirs, ours = tmp_path / "other" / name, tmp_path / shard.path / name
        assert json.loads((theirs / "zarr.json").read_text()) == json.loads((ours / "zarr.json").read_text())
        assert (theirs / "c/0/0").stat().st_size == (ours / "c/0/0").stat().st_size


def test_hand_worked_label(tmp_path):
    """The codes of ``Source`` and the fixed numbers of the format."""
    assert [source.value for source in Source] == [0, 1, 2, 3, 4]
    points = Points(
        u=np.array([1, 3, 0, 2], np.uint16),
        v=np.array([0, 0, 2, 2], np.uint16),
        depth_m=np.array([12.5, 3, 12.25, 3.5], np.float32),
        source=np.array([3, 4, 1, 4], np.uint8),
        age=np.array([31, 0, 2, 0], np.uint8),
        confidence=np.array([255, 128, 255, 64], np.uint8),
    )
    shard = write_shard(tmp_path, one_label(points, 3, 4))
    group = zarr.open_group(tmp_path / shard.path, mode="r")
    assert group["row_start"][0].tolist() == [0, 2, 2, 4]
    assert group["column_gap"][0].tolist() == [1, 2, 0, 2]
    # 12.5 and 12.25 were measured; then come 3 and 3.5: differences of 3200, -64, -2368 and 128 steps
    assert group["depth_step"][0].tolist() == [6400, 127, 4735, 256]
    assert group["code"][0].tolist() == [3 * 32 + 31, 128, 34, 128]
    assert group["confidence"][0].tolist() == [255, 255, 128, 64]
    label = ShardReader(tmp_path, shard.path, shard.files, n_frames=1, height=3, width=4).read(0)
    assert label.depth_m.tolist() == [[0, 12.5, 0, 3], [0, 0, 0, 0], [12.25, 0, 3.5, 0]]
    assert label.source.tolist() == [[0, 3, 0, 4], [0, 0, 0, 0], [1, 0, 4, 0]]
    assert label.age.tolist() == [[0, 31, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 65535), (3, 65535), (65535, 1), (2, 65534)])
def test_sides_and_corners(tmp_path, height, width):
    """Full first and last rows, else nothing; depths from the smallest to the largest, in jumps of all sizes."""
    v, u = np.nonzero(np.isin(np.arange(height), (0, height - 1))[:, None] & np.ones((1, width), bool))
    i = np.arange(len(v))
    steps = np.where(i % 2, 65533 - i % 65533, 1 + i % 65533)
    points = Points(
        *(u.astype(np.uint16), v.astype(np.uint16), (steps / 256).astype(np.float32)),
        *((1 + i % 3).astype(np.uint8), (i % 32).astype(np.uint8)),
    )
    labels = one_label(points, height, width)
    assert_points(written_and_read(tmp_path, labels).points(), points)
    assert_plain(zarr.open_group(tmp_path / write_shard(tmp_path, labels).path, mode="r"), 0, points)


def test_every_code(tmp_path):
    source, age = (grid.ravel().astype(np.uint8) for grid in np.meshgrid(np.arange(1, 5), np.arange(32)))
    n = len(source)
    points = Points(np.arange(n, dtype=np.uint16), np.zeros(n, np.uint16), np.ones(n, np.float32), source, age)
    assert_points(written_and_read(tmp_path, one_label(points, 1, n)).points(), points)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_label_comes_back(tmp_path_factory, data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 40))
    at = np.array(sorted(data.draw(st.sets(st.integers(0, height * width - 1)))), np.uint16)

    def column(low, high):
        return np.array(data.draw(st.lists(st.integers(low, high), min_size=len(at), max_size=len(at))), np.uint32)

    points = Points(
        u=at % np.uint16(width),
        v=at // np.uint16(width),
        depth_m=column(1, 65533).astype(np.float32) / np.float32(256),
        source=column(1, 4).astype(np.uint8),
        age=column(0, 31).astype(np.uint8),
        confidence=column(1, 255).astype(np.uint8) if data.draw(st.booleans()) else None,
    )
    labels, store = one_label(points, height, width), tmp_path_factory.mktemp("store")
    assert_points(written_and_read(store, labels).points(), points)
    assert_plain(zarr.open_group(store / write_shard(store, labels).path, mode="r"), 0, points)


def test_depths_between_steps_are_rounded(tmp_path):
    metres = np.array([1 / 512, 10.0019, 255.9899], np.float32)
    points = Points(
        *(np.arange(3, dtype=np.uint16), np.zeros(3, np.uint16), metres),
        *(np.ones(3, np.uint8), np.zeros(3, np.uint8)),
    )
    label = written_and_read(tmp_path, one_label(points, 1, 3))
    assert label.depth_m[0].tolist() == dequantise(quantise(metres)).tolist() == [1 / 256, 10, 65533 / 256]


def test_one_frame_is_read_without_the_others(tmp_path, monkeypatch):
    labels = content(4, 0.9)
    shard = write_shard(tmp_path, labels)
    opened = reader(tmp_path, shard)
    read = {}

    def get(self, path, start=0, stop=None, plain=Folder.get):
        data = plain(self, path, start, stop)
        read[path.removeprefix(f"{shard.path}/")] = len(data)
        return data

    monkeypatch.setattr(Folder, "get", get)
    assert_label(opened.read(2), labels, 2)
    sizes = {file.path: file.bytes for file in shard.files}
    assert read.keys() == {path for path in sizes if path.endswith("c/0/0")}
    assert all(n < sizes[path] / 3 for path, n in read.items())  # of four frames


def test_same_content_same_bytes_anywhere(tmp_path):
    """Another process, other thread settings, another folder."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shard = write_shard(tmp_path / "a", content(3, 0.8))
    made = f"write_shard({str(tmp_path / 'b')!r}, content(3, 0.8)).sha256"
    code = f"from test_shards import content, write_shard; print({made})"
    env = {**os.environ, "BLOSC_NTHREADS": "4", "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shard.sha256
    assert Path(shard.path).stem == shard.sha256[:16]


def test_writing_again_keeps_the_files_and_repairs_damage(tmp_path):
    shard = write_shard(tmp_path, content())
    data = tmp_path / shard.path / "depth_step/c/0/0"
    inode, original = data.stat().st_ino, data.read_bytes()
    assert write_shard(tmp_path, content()) == shard
    assert data.stat().st_ino == inode
    for damage in (b"", original[:-1], bytes([original[0] ^ 1]) + original[1:]):
        data.write_bytes(damage)
        assert write_shard(tmp_path, content()) == shard
        assert data.read_bytes() == original
    data.unlink()
    write_shard(tmp_path, content())
    assert reader(tmp_path, shard).verify() == []


def test_bucket(tmp_path):
    labels, store = content(5), f"memory://{tmp_path.name}"
    shard = write_shard(store, labels)
    assert shard == write_shard(tmp_path, labels)
    assert_label(reader(store, shard).read(2), labels, 2)
    assert reader(store, shard).verify() == []
    place = open_store(store)
    assert [place.put_if_absent("x", b"1"), place.put_if_absent("x", b"2"), place.get("x")] == [True, False, b"1"]
    place.put(f"{shard.path}/depth_step/c/0/0", b"")
    with pytest.raises(CorruptShardError, match="0 bytes instead of"):
        reader(store, shard)
    place.delete(shard.path)
    with pytest.raises(CorruptShardError, match="missing"):
        reader(store, shard)


def test_reads_in_a_forked_process(tmp_path):
    """A data loader forks after the parent has read labels and zarr's threads exist."""
    opened = reader(tmp_path, write_shard(tmp_path, content()))
    opened.read(0)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if opened.read(1).depth_m.any() else 1)
    assert os.waitpid(child, 0)[1] == 0


# ---- what a writer refuses


def first(column: np.ndarray, value) -> np.ndarray:
    """With another first value."""
    return np.concatenate([np.array([value], column.dtype), column[1:]])


GOOD = content()
POINTS = GOOD.labels[1].points()


@pytest.mark.parametrize(
    "changed",
    [
        dataclasses.replace(GOOD, scene_token="../evil"),
        dataclasses.replace(GOOD, kind=".."),
        dataclasses.replace(GOOD, camera="a/b"),
        dataclasses.replace(GOOD, n_sweeps=(1, 2, 3)),
        dataclasses.replace(GOOD, labels=(), n_sweeps=()),
        dataclasses.replace(GOOD, labels=GOOD.labels[:1] * 4),
        relabelled(GOOD, sample_token="c\0"),
        relabelled(GOOD, height=25),
        relabelled(GOOD, K=np.full((3, 3), np.nan)),
        relabelled(GOOD, K=np.eye(4)),
        relabelled(GOOD, confidence=None),
        relabelled(GOOD, confidence=POINTS.confidence.astype(float)),
        relabelled(GOOD, confidence=first(POINTS.confidence, 0)),
        relabelled(GOOD, depth_m=POINTS.depth_m.astype(np.float64)),
        relabelled(GOOD, depth_m=POINTS.depth_m[1:]),
        *(relabelled(GOOD, depth_m=first(POINTS.depth_m, x)) for x in (0, 0.0019, -1, 255.99, np.inf, np.nan)),
        *(relabelled(GOOD, source=first(POINTS.source, x)) for x in (0, 5, 255)),
        *(relabelled(GOOD, age=first(POINTS.age, x)) for x in (32, 255)),
        relabelled(GOOD, u=first(POINTS.u, 32)),
        relabelled(GOOD, v=POINTS.v + np.uint16(1)),
        relabelled(GOOD, u=POINTS.u[::-1]),
        relabelled(GOOD, v=POINTS.v[::-1]),
        relabelled(GOOD, u=POINTS.u * np.uint16(0)),
    ],
)
def test_refuses_content_that_does_not_fit(tmp_path, changed):
    with pytest.raises(ValueError, match="shard "):
        write_shard(tmp_path, changed)
    assert os.listdir(tmp_path) == []


def test_refuses_sides_that_columns_cannot_name(tmp_path):
    nothing = content(fraction=0).labels[0].points()
    for height, width in ((1, 65536), (65536, 1)):
        with pytest.raises(ValueError, match="sides must be 1 to 65535"):
            write_shard(tmp_path, one_label(nothing, height, width))


def test_nothing_is_written_through_a_link_out_of_the_store(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store/shards").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="leaves the store"):
        write_shard(tmp_path / "store", content())
    assert os.listdir(tmp_path / "outside") == []


# ---- faults


def read_all(store, shard: ShardFiles) -> list:
    opened = reader(store, shard)
    return [opened.read(t) for t in range(SHAPE[0])]


def test_flipped_bits_never_give_wrong_labels(tmp_path):
    labels = content(7, 0.3)
    shard = write_shard(tmp_path, labels)
    rng = np.random.default_rng(0)
    sizes = np.array([file.bytes for file in shard.files])
    raised = 0
    for _ in range(200):
        # half of the flips in the data, half in any file
        which = rng.choice(len(sizes), p=sizes / sizes.sum() / 2 + 1 / len(sizes) / 2)
        path = tmp_path / shard.path / shard.files[which].path
        original = path.read_bytes()
        damaged = bytearray(original)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            for t, label in enumerate(read_all(tmp_path, shard)):
                assert_label(label, labels, t)
        except CorruptShardError as error:
            assert shard.path in str(error)
            raised += 1
        assert reader_verify(tmp_path, shard), "verify missed a flip"
        path.write_bytes(original)
    assert raised == 200  # every byte of a shard matters to a reader of all its frames
    assert reader(tmp_path, shard).verify() == []


def reader_verify(store, shard: ShardFiles) -> list[str]:
    from dense_depth.shards import find_problems

    return find_problems(open_store(store), shard.path, shard.files, hashes=True)


@pytest.mark.parametrize("name", FILES)
def test_emptied_cut_and_deleted_files(tmp_path, name):
    shard = write_shard(tmp_path, content())
    path = tmp_path / shard.path / name
    original = path.read_bytes()
    for damage in (b"", original[: len(original) // 2], original + b"\0", None):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        with pytest.raises(CorruptShardError, match=name):
            reader(tmp_path, shard)
        assert any(name in problem for problem in reader_verify(tmp_path, shard))


def test_deleted_after_opening(tmp_path):
    shard = write_shard(tmp_path, content())
    opened = reader(tmp_path, shard)
    shutil.rmtree(tmp_path / shard.path)
    with pytest.raises(FileNotFoundError):
        opened.read(0)


def reindexed(data: bytes, change) -> bytes:
    """A shard file whose index was changed and has a right checksum: valid for any Zarr reader."""
    n = SHAPE[0]
    index = np.frombuffer(data[-16 * n - 4 : -4], "<u8").reshape(n, 2).copy()
    change(index)
    tail = index.tobytes()
    return data[: -16 * n - 4] + tail + struct.pack("<I", google_crc32c.value(tail))


@pytest.mark.parametrize("name", ARRAYS)
def test_another_valid_shard_of_the_same_size(tmp_path, name):
    """Frames swapped, and a frame declared empty: zarr reads both without complaint, we must not."""
    labels = content(8)
    shard = write_shard(tmp_path, labels)
    path = tmp_path / shard.path / name / "c/0/0"
    original = path.read_bytes()

    def swap(index):
        index[[0, 1]] = index[[1, 0]]

    def drop(index):
        index[0] = 2**64 - 1

    plain = zarr.open_group(tmp_path / shard.path, mode="r")[name]
    before = plain[...]
    path.write_bytes(reindexed(original, swap))
    np.testing.assert_array_equal(plain[0], before[1])  # the fault is real
    with pytest.raises(CorruptShardError, match=f"{name} of frame 0 is not what was written"):
        reader(tmp_path, shard).read(0)

    path.write_bytes(reindexed(original, drop))
    assert (plain[0] == FILLS[name]).all()  # and so is this one
    with pytest.raises(CorruptShardError, match=f"{name} of frame 0 is missing"):
        reader(tmp_path, shard).read(0)
    assert_label(reader(tmp_path, shard).read(2), labels, 2)
    assert len(reader_verify(tmp_path, shard)) == 1


def relisted(store, shard: ShardFiles) -> ShardFiles:
    """A shard with the files that are there now, all hashes right: what only a faulty writer could make."""
    data = {file.path: (store / shard.path / file.path).read_bytes() for file in shard.files}
    entries = (FileEntry(path, len(x), hashlib.sha256(x).hexdigest()) for path, x in data.items())
    return shard._replace(files=tuple(entries))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("row_start", [0, 3, 2, 4]),
        ("row_start", [1, 2, 3, 4]),
        ("row_start", [0, 2, 5, 4]),
        ("row_start", [0, 2, 3, 5]),
        ("row_start", [0, 2**32 - 1, 3, 4]),
        ("row_start", [0, 2, 3, 2**32 - 1]),
        ("column_gap", [0, 0, 2, 3]),  # twice the same column
        ("column_gap", [0, 3, 4, 3]),
        ("column_gap", [0, 4, 2, 3]),
        ("column_gap", [65535, 1, 2, 3]),
        ("depth_step", [0, 2, 2, 2]),
        ("depth_step", [2, 1, 2, 2]),
        ("depth_step", [65535, 2, 2, 2]),
        ("code", [0, 32, 32, 32]),
        ("code", [32, 32, 32, 5 << 5]),
        ("code", [255, 32, 32, 32]),
        ("confidence", [0, 1, 1, 1]),
    ],
)
def test_lists_that_no_label_has(tmp_path, name, values):
    """Refused though all checksums are right."""
    points = Points(
        *(np.array(x, np.uint16) for x in ([0, 3, 2, 3], [0, 0, 1, 2])),
        *(np.ones(4, np.float32), np.ones(4, np.uint8), np.zeros(4, np.uint8), np.full(4, 255, np.uint8)),
    )
    shard = write_shard(tmp_path, one_label(points, 3, 4))
    group = zarr.open_group(tmp_path / shard.path, mode="r+")
    group[name][0] = np.array(values, group[name].dtype)
    meta = json.loads((tmp_path / shard.path / "zarr.json").read_text())
    count = {"row_start": 4} | dict.fromkeys(ARRAYS[1:], group["row_start"][0, 3])
    for other, array in group.arrays():
        meta["attributes"]["frame_crc32c"][other] = [google_crc32c.value(array[0][: count[other]])]
    (tmp_path / shard.path / "zarr.json").write_text(json.dumps(meta))
    shard = relisted(tmp_path, shard)
    opened = ShardReader(tmp_path, shard.path, shard.files, n_frames=1, height=3, width=4)
    with pytest.raises(CorruptShardError, match="frame 0"):
        opened.read(0)


def without_checksum(meta: dict) -> None:
    meta["codecs"][0]["configuration"]["codecs"].pop()


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "change",
    [
        *({"shape": shape} for shape in ([4, 10**12], [3, 25], [4], [], None, [4, "x"])),
        {"data_type": "float64"},
        {"fill_value": 1},
        {"codecs": []},
        {"codecs": [{"name": "bytes"}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}},
        {"node_type": "group"},
        without_checksum,
    ],
)
def test_metadata_of_another_form_is_refused_before_allocation(tmp_path, name, change):
    shard = write_shard(tmp_path, content())
    path = tmp_path / shard.path / name / "zarr.json"
    meta = json.loads(path.read_text())
    change(meta) if callable(change) else meta.update(change)
    path.write_text(json.dumps(meta))
    with pytest.raises(CorruptShardError, match=f"{name}: .* that is not the manifest's"):
        reader(tmp_path, relisted(tmp_path, shard))


def test_shards_of_schema_1_are_refused_in_one_line(tmp_path):
    """A group of planes, as it was, listed right."""
    path = "shards/accumulated/0123456789abcdef.zarr"
    group = zarr.create_group(tmp_path / path, attributes={"schema_version": 1})
    for name in ("age", "depth", "source"):
        group.create_array(name, shape=(1, 2, 3), dtype="u1")[...] = 1
    found = [file.relative_to(tmp_path / path).as_posix() for file in (tmp_path / path).rglob("*") if file.is_file()]
    shard = relisted(tmp_path, ShardFiles(path, 0, "", tuple(FileEntry(name, 0, "") for name in found)))
    with pytest.raises(CorruptShardError, match=r"schema 1, .*make the labels again, into a new --store") as error:
        ShardReader(tmp_path, path, shard.files, n_frames=1, height=2, width=3)
    assert "\n" not in str(error.value)


def test_replaced_by_a_whole_other_shard(tmp_path):
    mine, other = write_shard(tmp_path, content(1)), write_shard(tmp_path, content(2))
    shutil.rmtree(tmp_path / mine.path)
    shutil.copytree(tmp_path / other.path, tmp_path / mine.path)
    with pytest.raises(CorruptShardError, match=mine.path):
        reader(tmp_path, mine)
    assert reader_verify(tmp_path, mine)


@pytest.mark.parametrize("shape", [(4, 24, 33), (4, 25, 32), (3, 24, 32), (4, 10**6, 10**6)])
def test_shape_of_the_manifest_is_compared_before_allocation(tmp_path, shape):
    shard = write_shard(tmp_path, content())
    with pytest.raises(CorruptShardError, match="is not the manifest's"):
        ShardReader(tmp_path, shard.path, shard.files, n_frames=shape[0], height=shape[1], width=shape[2])


def test_paths_that_leave_the_store(tmp_path):
    shard = write_shard(tmp_path, content())
    for path in ("../x.zarr", "/etc", "shards/../../x.zarr", f"shards/../{shard.path}", shard.path + "/.."):
        with pytest.raises(CorruptShardError, match="not a shard path"):
            reader(tmp_path, shard._replace(path=path))
    bad = shard.files[0]._replace(path="../../../secret")
    with pytest.raises(CorruptShardError, match="not a file of a label shard"):
        reader(tmp_path, shard._replace(files=(*shard.files, bad)))


def test_extra_file_is_reported(tmp_path):
    shard = write_shard(tmp_path, content())
    (tmp_path / shard.path / "depth_step/c/0/1").write_bytes(b"x")
    assert reader_verify(tmp_path, shard) == [f"{shard.path}/depth_step/c/0/1: not in the manifest"]


KILL_SCRIPT = """
import os, sys, test_shards as t
from conftest import run_with_deaths
root = sys.argv[1]
def prepare(step):
    os.mkdir(f"{root}/{step}")
def work(step):
    t.write_shard(f"{root}/{step}", t.content())
def check(step):
    found = [f"shards/accumulated/{n}" for n in os.listdir(f"{root}/{step}/shards/accumulated")] if os.path.isdir(
        f"{root}/{step}/shards/accumulated") else []
    assert len(found) <= 1, found
    for path in found:  # whatever has a final name is whole
        assert sum(len(files) for _, _, files in os.walk(f"{root}/{step}/{path}")) == 11, step
print(run_with_deaths(prepare, work, check))
"""


def test_killed_writer_leaves_nothing_torn(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILL_SCRIPT, str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 40  # the points of death were reached
    expected = None
    for step in range(1, steps + 1):
        shard = write_shard(tmp_path / str(step), content())  # the rerun
        assert reader_verify(tmp_path / str(step), shard) == []
        assert shard == (expected or shard)
        expected = shard


def test_a_name_appears_after_its_bytes_are_durable(tmp_path, monkeypatch):
    """What a power cut can leave: every file and folder is synced, then renamed, then the parent is synced."""
    log = []

    def fsync(handle, plain=os.fsync):
        log.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        plain(handle)

    def rename(source, target, plain=os.rename):
        log.append(("rename", str(source), str(target)))
        plain(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    shard = write_shard(tmp_path, content())
    at = next(i for i, step in enumerate(log) if step[0] == "rename")
    staging = log[at][1]
    written = {f"{staging}/{file.path}" for file in shard.files}
    folders = {str(parent) for path in written for parent in Path(path).parents if str(parent).startswith(staging)}
    assert written | folders <= {step[1] for step in log[:at]}
    assert log[at + 1 :] == [("sync", str((tmp_path / shard.path).parent))]
    assert ("sync", str(tmp_path)) in log  # where shards/ was created


def test_full_disk_leaves_no_shard(tmp_path, monkeypatch):
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_shard(tmp_path, content())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    shard = write_shard(tmp_path, content())
    assert reader_verify(tmp_path, shard) == []


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_for_a_file(tmp_path_factory, data):
    """Same size or not, whatever is in a data file, a reader raises CorruptShardError or gives what was written."""
    store = tmp_path_factory.mktemp("store")
    labels = content()
    shard = write_shard(store, labels)
    path = store / shard.path / "depth_step/c/0/0"
    original = path.read_bytes()
    path.write_bytes(data + original[len(data) :])
    try:
        for t, label in enumerate(read_all(store, shard)):
            assert_label(label, labels, t)
    except CorruptShardError:
        pass
