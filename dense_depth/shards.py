"""Labels on disk: one Zarr v3 group per (scene, camera) of one kind, named by the hash of its bytes.

The arrays are lists of points, one frame to a row and a chunk; docs/format.md describes them. Zarr returns fill values
for a missing or emptied shard and wrong numbers for a flipped bit, without an error. So nothing is left to it: a reader
compares presence and size of every file with the manifest first, hashes the metadata, and compares every frame it
decodes with the checksum that the (hashed) metadata holds.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dense_depth import InputError
from dense_depth.label import DEPTH_STEPS_PER_M, MAX_AGE, Label, Source
from dense_depth.lists import Lists, pack, unpack
from dense_depth.store import Bucket, Folder, open_store

SCHEMA_VERSION = 2
# Values that are never written, so that a lost chunk shows; the type is that of the array.
FILL_VALUES: dict[str, np.unsignedinteger] = {
    "row_start": np.uint32(0xFFFFFFFF),
    "column_gap": np.uint16(0xFFFF),
    "depth_step": np.uint16(0xFFFF),
    "code": np.uint8(0xFF),
    "confidence": np.uint8(0),
}
DATA_FILE = "c/0/0"  # of an array: all its frames

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
SHARD_PATH = re.compile(r"shards/([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})/([0-9a-f]{16})\.zarr")
_GROUP_FILE = re.compile(rf"(({'|'.join(FILL_VALUES)})/({DATA_FILE}|zarr\.json)|zarr\.json)")


class CorruptShardError(InputError):
    """A shard on disk is not what its manifest row says; the message names the shard and the file or frame."""


@dataclass(frozen=True)
class ShardContent:
    """All T labels of one (scene, camera) of one kind, as a worker hands them over."""

    kind: str  # lidar, accumulated, completed
    dataset: str
    scene_token: str
    camera: str
    labels: tuple[Label, ...]  # of one size, ordered by time
    n_sweeps: tuple[int, ...]  # how many sweeps each label was made from
    attributes: dict[str, Any] = field(default_factory=dict)  # anything else worth keeping, as JSON values

    @property
    def sample_tokens(self) -> tuple[str, ...]:
        """The keyframes."""
        return tuple(label.sample_token for label in self.labels)


class FileEntry(NamedTuple):
    """One file of a shard: path inside the group, size, hash."""

    path: str
    bytes: int
    sha256: str


class ShardFiles(NamedTuple):
    """A published shard: its path in the store, total size, hash over its files, and the files."""

    path: str
    bytes: int
    sha256: str
    files: tuple[FileEntry, ...]


def write_shard(store: str | Path | Folder | Bucket, content: ShardContent) -> ShardFiles:
    """Encodes the labels and publishes them under the name of their bytes; doing it again changes nothing.

    Compressed bytes are held in memory (about twice their size at the peak), the arrays are not copied.

    Raises:
        ValueError: The parts of the content do not fit together.
    """
    _check(content)
    encoded = _encode(content)
    files = tuple(FileEntry(name, len(encoded[name]), hashlib.sha256(encoded[name]).hexdigest()) for name in encoded)
    sha256 = shard_sha256(files)
    path = f"shards/{content.kind}/{sha256[:16]}.zarr"
    open_store(store).put_group(path, encoded, {file.path: file.sha256 for file in files})
    return ShardFiles(path, sum(file.bytes for file in files), sha256, files)


def shard_sha256(files: Sequence[FileEntry]) -> str:
    """The hash that names a shard: over one line "path size sha256" per file, sorted by path."""
    return hashlib.sha256("".join(f"{f.path} {f.bytes} {f.sha256}\n" for f in sorted(files)).encode()).hexdigest()


def _check(content: ShardContent) -> None:
    where = f"shard {content.kind}/{content.scene_token}/{content.camera}"
    names = (content.kind, content.dataset, content.scene_token, content.camera, *content.sample_tokens)
    if bad := [name for name in names if not NAME.fullmatch(name)]:
        raise ValueError(f"{where}: {bad[0]!r} is not a name (letters, digits, . _ -, at most 128)")
    labels = content.labels
    if not labels or len(set(content.sample_tokens)) != len(labels) or len(content.n_sweeps) != len(labels):
        raise ValueError(f"{where}: needs labels of distinct keyframes, and n_sweeps of each")
    if len({(label.height, label.width, label.labelled.confidence is None) for label in labels}) > 1:
        raise ValueError(f"{where}: labels must have one size, and all of them a confidence or none")
    if bad_K := [t for t, label in enumerate(labels) if label.K.shape != (3, 3) or not np.isfinite(label.K).all()]:
        raise ValueError(f"{where}: K of frame {bad_K[0]} must be finite, (3,3)")


def _encode(content: ShardContent) -> dict[str, memoryview]:
    """The files of the group, by path, sorted."""
    import google_crc32c

    packed: list[Lists] = []
    for frame, label in enumerate(content.labels):
        try:
            packed.append(pack(label))
        except ValueError as error:
            where = f"shard {content.kind}/{content.scene_token}/{content.camera}, frame {frame}"
            raise ValueError(f"{where}: {error}") from error
    longest = max(1, *(len(lists.code) for lists in packed))  # Zarr has no chunks without a value
    attributes: dict[str, Any] = {
        "format": "dense-depth labels",
        "schema_version": SCHEMA_VERSION,
        "kind": content.kind,
        "dataset": content.dataset,
        "scene_token": content.scene_token,
        "camera": content.camera,
        "image_size": _image_size(content.labels[0].height, content.labels[0].width),
        "depth_unit": f"1/{DEPTH_STEPS_PER_M} m",
        "age_unit": f"0.1 s, {MAX_AGE} = {MAX_AGE / 10} s or more",
        "source_codes": {source.name.lower(): source.value for source in Source},
        "sample_tokens": list(content.sample_tokens),
        "timestamps_us": [int(label.timestamp_us) for label in content.labels],
        "n_sweeps": [int(n) for n in content.n_sweeps],
        "K": [label.K.astype(np.float64).tolist() for label in content.labels],
        "frame_crc32c": {},
        "extra": content.attributes,
    }
    files: dict[str, bytes] = {}
    for name, *frames in zip(Lists._fields, *packed):
        if frames[0] is None:
            continue
        attributes["frame_crc32c"][name] = [google_crc32c.value(values) for values in frames]
        length = len(frames[0]) if name == "row_start" else longest
        files[f"{name}/{DATA_FILE}"] = _sharded(name, frames, length)
        files[f"{name}/zarr.json"] = _json(_array_metadata(name, len(frames), length))
    files["zarr.json"] = _json({"zarr_format": 3, "node_type": "group", "attributes": attributes})
    return {name: memoryview(files[name]) for name in sorted(files)}


def _image_size(height: int, width: int) -> dict[str, int]:
    return {"width": width, "height": height}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _array_metadata(name: str, n_frames: int, length: int) -> dict[str, Any]:
    """The zarr.json of an array of (frames, length), a frame to a chunk, all chunks in one shard.

    Measured on 1600x900 accumulated labels of 133,000 points (kB and ms to encode, decode; zstd alone, then blosc with
    zstd and shuffle, level 1, then level 3): gaps 93 2.8 0.6, 70 1.0 0.4, 74 3.2 0.2; depths 135 1.4 0.7, 112 0.8 0.3,
    113 1.8 0.8. Bitshuffle takes 80 and 120 kB. Codes are bytes, where zstd 1 and 3 take 58 and 61 kB.
    """
    fill = FILL_VALUES[name]
    checksum = {"name": "crc32c"}
    order: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if fill.itemsize > 1:
        of_codec = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": fill.itemsize, "blocksize": 0}
        inner = [order, {"name": "blosc", "configuration": of_codec}, checksum]
    else:
        inner = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}, checksum]
    sharding = {"chunk_shape": [1, length], "codecs": inner, "index_codecs": [order, checksum], "index_location": "end"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [n_frames, length],
        "data_type": fill.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [n_frames, length]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": int(fill),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["frame", "row" if name == "row_start" else "point"],
        "attributes": {},
        "storage_transformers": [],
    }


def _codec(name: str) -> Any:
    """What (de)compresses the frames of an array."""
    import numcodecs
    import numcodecs.blosc

    numcodecs.blosc.set_nthreads(1)  # the bytes must not depend on the machine
    if FILL_VALUES[name].itemsize > 1:
        return numcodecs.Blosc("zstd", clevel=1, shuffle=numcodecs.Blosc.SHUFFLE)
    return numcodecs.Zstd(level=1)


def _sharded(name: str, frames: Sequence[np.ndarray], length: int) -> bytes:
    """The data file of an array, as Zarr's ``sharding_indexed`` codec lays it out: chunks, their index, its checksum.

    Written here, since zarr-python takes longer for the way to a chunk than the codec for the chunk.
    """
    import google_crc32c

    codec, padded = _codec(name), np.empty(length, FILL_VALUES[name].dtype)
    parts, index, at = [], np.empty((len(frames), 2), "<u8"), 0
    for frame, values in enumerate(frames):
        padded[: len(values)], padded[len(values) :] = values, FILL_VALUES[name]
        data = codec.encode(padded)
        parts += [data, google_crc32c.value(data).to_bytes(4, "little")]
        index[frame] = at, len(data) + 4
        at += len(data) + 4
    tail = index.tobytes()
    return b"".join([*parts, tail, google_crc32c.value(tail).to_bytes(4, "little")])


def find_problems(store: Folder | Bucket, path: str, files: Sequence[FileEntry], *, hashes: bool) -> list[str]:
    """What is wrong with a shard's files, one line each: names, presence and sizes, and with ``hashes`` the bytes."""
    if not SHARD_PATH.fullmatch(path):
        return [f"{path!r}: not a shard path"]
    if bad := [file.path for file in files if not _GROUP_FILE.fullmatch(file.path)]:
        return [f"{path}: {bad[0]!r} is not a file of a label shard"]
    sizes = {file.path.removeprefix(f"{path}/"): file.bytes for file in store.walk(path)}
    problems: list[str] = []
    for file in files:
        if file.path not in sizes:
            problems.append(f"{path}/{file.path}: missing")
        elif sizes[file.path] != file.bytes:
            problems.append(f"{path}/{file.path}: {sizes[file.path]} bytes instead of {file.bytes}")
        elif hashes and store.sha256(f"{path}/{file.path}") != file.sha256:
            problems.append(f"{path}/{file.path}: changed since it was written (sha256 differs)")
    if hashes:
        extra = sizes.keys() - {file.path for file in files}
        problems += [f"{path}/{name}: not in the manifest" for name in sorted(extra)]
    return problems


class ShardReader:
    """Reads frames of one shard, after checking its files against the manifest.

    Frames are decoded here, not by zarr-python, which takes longer on the way to a chunk than the codec for it, and
    would answer a missing chunk with fill values.
    """

    def __init__(
        self,
        store: str | Path | Folder | Bucket,
        path: str,
        files: Sequence[FileEntry],
        *,
        n_frames: int,
        height: int,
        width: int,
    ):
        """Opens the shard at ``path`` with the files and the shape (T,H,W) that its manifest row holds.

        Raises:
            CorruptShardError: A file is missing or has another size or other metadata, or an array another form; or
                the labels are of another schema.
        """
        self.path = path
        self._store, self._files = open_store(store), tuple(files)
        self._n_frames, self._height, self._width = n_frames, height, width
        if not SHARD_PATH.fullmatch(path):
            raise CorruptShardError(f"{path!r}: not a shard path")
        self._attributes = self._metadata("zarr.json")["attributes"]
        if (schema := self._attributes.get("schema_version")) != SCHEMA_VERSION:
            raise CorruptShardError(
                f"{path}: labels of schema {schema}, but this program reads schema {SCHEMA_VERSION}; make the labels "
                "again, into a new --store"
            )
        if problems := find_problems(self._store, path, self._files, hashes=False):
            raise CorruptShardError(f"{problems[0]}; see `python -m catalog verify`")
        if self._attributes["image_size"] != _image_size(height, width):
            raise CorruptShardError(f"{path}: {self._attributes['image_size']} is not the manifest's {width}x{height}")
        self.camera: str = self._attributes["camera"]
        self.sample_tokens: list[str] = self._attributes["sample_tokens"]
        self.n_sweeps: list[int] = self._attributes["n_sweeps"]
        self._sizes = {file.path: file.bytes for file in self._files}
        self._codecs: dict[str, Any] = {}
        self._lengths: dict[str, int] = {}
        self._chunks: dict[str, np.ndarray] = {}
        for name in FILL_VALUES:
            if name != "confidence" or f"{name}/zarr.json" in self._sizes:
                self._codecs[name], self._lengths[name] = _codec(name), self._length(name)
                self._chunks[name] = self._chunk_index(name)

    def read(self, index: int) -> Label:
        """The label of frame ``index``.

        Raises:
            CorruptShardError: The frame's bytes are damaged.
        """
        if not 0 <= index < self._n_frames:
            raise IndexError(f"{self.path}: frame {index} of {self._n_frames}")
        row_start = self._frame("row_start", index, self._height + 1)
        n = int(row_start[-1])
        values = {name: self._frame(name, index, n) for name in self._chunks if name != "row_start"}
        try:
            points = unpack(Lists(row_start, **values), self._width)
        except ValueError as error:
            raise CorruptShardError(f"{self.path}: frame {index}: {error}") from error
        return Label(
            labelled=points,
            height=self._height,
            width=self._width,
            K=np.array(self._attributes["K"][index]),
            sample_token=self.sample_tokens[index],
            camera=self.camera,
            timestamp_us=self._attributes["timestamps_us"][index],
        )

    def verify(self) -> list[str]:
        """Re-hashes every file; returns the problems, one line each."""
        return find_problems(self._store, self.path, self._files, hashes=True)

    def _metadata(self, name: str) -> dict[str, Any]:
        """A zarr.json, which is small enough to be hashed at every opening."""
        expected = next((file.sha256 for file in self._files if file.path == name), None)
        try:
            text = self._store.get(f"{self.path}/{name}") if expected else b""
        except FileNotFoundError:
            text = b""
        if hashlib.sha256(text).hexdigest() != expected:
            raise CorruptShardError(f"{self.path}/{name}: missing or changed since it was written")
        return json.loads(text)

    def _length(self, name: str) -> int:
        """Values in a chunk of an array, once its metadata agrees with the manifest; before anything is allocated."""
        meta = self._metadata(f"{name}/zarr.json")
        shape, most = meta.get("shape"), self._height * self._width
        length = shape[-1] if isinstance(shape, list) and shape and isinstance(shape[-1], int) else 0
        expected = self._height + 1 if name == "row_start" else min(length, most)
        if meta != _array_metadata(name, self._n_frames, expected):
            raise CorruptShardError(
                f"{self.path}/{name}: of shape {shape}, or of a form, that is not the manifest's: {self._n_frames} "
                f"labels of {self._width}x{self._height}"
            )
        return length

    def _chunk_index(self, name: str) -> np.ndarray:
        """(T,2) offset and size in bytes of every frame: the last bytes of the data file."""
        import google_crc32c

        path = f"{name}/{DATA_FILE}"
        size = self._sizes.get(path, 0)
        start = size - 16 * self._n_frames - 4
        tail = self._store.get(f"{self.path}/{path}", start, size) if start > 0 else b""
        if google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little") or not tail:
            raise CorruptShardError(f"{self.path}/{path}: the index of its frames is damaged")
        return np.frombuffer(tail[:-4], "<u8").reshape(self._n_frames, 2)

    def _frame(self, name: str, index: int, n: int) -> np.ndarray:
        """The first n values of a frame: those that count."""
        import google_crc32c

        where = f"{self.path}: {name} of frame {index}"
        offset, size = (int(x) for x in self._chunks[name][index])
        if (
            offset + size > self._sizes[f"{name}/{DATA_FILE}"] or size < 4
        ):  # "no such chunk" is offset and size 2**64 - 1
            raise CorruptShardError(f"{where} is missing")
        data = self._store.get(f"{self.path}/{name}/{DATA_FILE}", offset, offset + size)
        if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise CorruptShardError(f"{where} is damaged (crc32c differs)")
        values = np.empty(self._lengths[name], FILL_VALUES[name].dtype)
        try:
            self._codecs[name].decode(data[:-4], out=values)
        except (ValueError, RuntimeError) as error:
            raise CorruptShardError(f"{where} cannot be decoded: {error}") from error
        # The hashed metadata holds this checksum, so not even another shard's file of the same size gets past it.
        if n > len(values) or google_crc32c.value(values[:n]) != self._attributes["frame_crc32c"][name][index]:
            raise CorruptShardError(f"{where} is not what was written (crc32c of the frame differs)")
        return values[:n]
