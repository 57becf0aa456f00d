"""Shards against plain zarr and exact arithmetic, and under injected faults."""

import dataclasses
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
from dense_depth.label import Source, dequantise, quantise
from dense_depth.shards import CorruptShardError, ShardFiles, ShardReader, write_shard
from dense_depth.store import open_store


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


@pytest.mark.parametrize("fraction", [0, 0.06, 0.9, 1])
@pytest.mark.parametrize(("confidence", "age"), [(True, True), (True, False), (False, True), (False, False)])
def test_round_trip_and_plain_zarr(tmp_path, fraction, confidence, age):
    labels = content(1, fraction, confidence, age)
    shard = write_shard(tmp_path, labels)
    opened = reader(tmp_path, shard)
    for t in range(SHAPE[0]):
        assert_label(opened.read(t), labels, t)
    assert opened.verify() == []
    assert os.listdir(tmp_path / "staging") == []

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(tmp_path / shard.path, mode="r")
    assert sorted(name for name, _ in group.arrays()) == sorted(
        ["depth", "source"] + ["confidence"] * confidence + ["age"] * age
    )
    for name, array in group.arrays():
        np.testing.assert_array_equal(array[...], getattr(labels, name))
        assert (array.chunks, array.shards) == ((1, *SHAPE[1:]), SHAPE)
    assert (group["depth"].fill_value, group["source"].fill_value) == (65535, 255)
    codec = zarr.codecs.BloscCodec if fraction > 0.5 else zarr.codecs.ZstdCodec
    assert isinstance(group["depth"].compressors[0], codec)
    assert isinstance(group["depth"].compressors[-1], zarr.codecs.Crc32cCodec)
    attributes = group.attrs.asdict()
    assert attributes["sample_tokens"] == list(labels.sample_tokens)
    assert attributes["n_sweeps"] == [9, 8, 7, 6]
    assert attributes["depth_unit"] == "1/256 m"
    assert attributes["image_size"] == {"width": 32, "height": 24}


def test_label_of_lidar_like_values(tmp_path):
    """The codes of ``Source`` and the fixed numbers of the format."""
    assert [source.value for source in Source] == [0, 1, 2, 3, 4]
    depth = np.zeros((1, 2, 2), np.uint16)
    depth[0, 0, 1] = quantise(np.array(12.5))
    labels = content(
        depth=depth,
        source=(depth > 0).astype(np.uint8) * np.uint8(Source.MOVING),
        confidence=None,
        sample_tokens=("s",),
        timestamps_us=(1,),
        K=np.eye(3)[None],
        n_sweeps=(1,),
    )
    shard = write_shard(tmp_path, labels)
    label = ShardReader(tmp_path, shard.path, shard.files, n_frames=1, height=2, width=2).read(0)
    assert label.depth_m.tolist() == [[0, 12.5], [0, 0]]
    assert label.source.tolist() == [[0, 3], [0, 0]]


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
    data = tmp_path / shard.path / "depth/c/0/0/0"
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
    place.put(f"{shard.path}/depth/c/0/0/0", b"")
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


@pytest.mark.parametrize(
    "changes",
    [
        {"scene_token": "../evil"},
        {"kind": ".."},
        {"camera": "a/b"},
        {"sample_tokens": ("a", "b", "c", "a\0")},
        {"sample_tokens": ("a", "a", "b", "c")},
        {"n_sweeps": (1, 2, 3)},
        {"depth": np.full(SHAPE, 65535, np.uint16)},
        {"depth": np.ones(SHAPE, np.float32)},
        {"depth": np.zeros(SHAPE, np.uint16)},  # source without depth
        {"source": np.full(SHAPE, 9, np.uint8)},
        {"source": np.zeros((4, 24, 31), np.uint8)},
        {"K": np.full((4, 3, 3), np.nan)},
        {"confidence": np.ones(SHAPE)},
        {"age": np.zeros(SHAPE)},
        {"age": np.full(SHAPE, 1, np.uint8)},  # age without depth
        {"age": content(age=True).age + np.uint8(31)},
    ],
)
def test_refuses_content_that_does_not_fit(tmp_path, changes):
    with pytest.raises(ValueError, match="shard "):
        write_shard(tmp_path, dataclasses.replace(content(), **changes))
    assert os.listdir(tmp_path) == []


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


@pytest.mark.parametrize("name", ["depth/c/0/0/0", "source/c/0/0/0", "confidence/c/0/0/0", "age/c/0/0/0", "zarr.json"])
def test_emptied_cut_and_deleted_files(tmp_path, name):
    shard = write_shard(tmp_path, content(age=True))
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


def test_another_valid_shard_of_the_same_size(tmp_path):
    """Frames swapped, and a frame declared empty: zarr reads both without complaint, we must not."""
    labels = content(8)
    shard = write_shard(tmp_path, labels)
    path = tmp_path / shard.path / "depth/c/0/0/0"
    original = path.read_bytes()

    def swap(index):
        index[[0, 1]] = index[[1, 0]]

    def drop(index):
        index[0] = 2**64 - 1

    path.write_bytes(reindexed(original, swap))
    plain = zarr.open_group(tmp_path / shard.path, mode="r")["depth"]
    np.testing.assert_array_equal(plain[0], labels.depth[1])  # the fault is real
    with pytest.raises(CorruptShardError, match="depth of frame 0 is not what was written"):
        reader(tmp_path, shard).read(0)

    path.write_bytes(reindexed(original, drop))
    assert (plain[0] == 65535).all()  # and so is this one
    with pytest.raises(CorruptShardError, match="depth of frame 0 is missing"):
        reader(tmp_path, shard).read(0)
    assert_label(reader(tmp_path, shard).read(2), labels, 2)
    assert len(reader_verify(tmp_path, shard)) == 1


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
    (tmp_path / shard.path / "depth/c/0/0/1").write_bytes(b"x")
    assert reader_verify(tmp_path, shard) == [f"{shard.path}/depth/c/0/0/1: not in the manifest"]


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
        assert sum(len(files) for _, _, files in os.walk(f"{root}/{step}/{path}")) == 7, step
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
    path = store / shard.path / "depth/c/0/0/0"
    original = path.read_bytes()
    path.write_bytes(data + original[len(data) :])
    try:
        for t, label in enumerate(read_all(store, shard)):
            assert_label(label, labels, t)
    except CorruptShardError:
        pass
