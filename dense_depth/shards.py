"""Labels on disk: one Zarr v3 group per (scene, camera) of one kind, named by the hash of its bytes.

Zarr returns fill values for a missing or emptied shard and wrong numbers for a flipped bit, without an error. So
nothing is left to it: a reader compares presence and size of every file with the manifest before Zarr sees them,
hashes the metadata, and compares every frame it decodes with the checksum that the (hashed) metadata holds.
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
from dense_depth.label import DEPTH_STEPS_PER_M, MAX_AGE, Label, Source, dequantise, quantise
from dense_depth.store import Bucket, Folder, open_store

SCHEMA_VERSION = 1
# Values that are never written, so that a lost chunk shows. Every confidence is legal: there 0, no trust at all.
FILL_VALUES = {"depth": 65535, "source": 255, "confidence": 0, "age": 255}
OPTIONAL = ("confidence", "age")
_DTYPES = {name: np.dtype("<u2" if name == "depth" else "u1") for name in FILL_VALUES}
DENSE_FRACTION = 0.5

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
SHARD_PATH = re.compile(r"shards/([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})/([0-9a-f]{16})\.zarr")
_GROUP_FILE = re.compile(r"((depth|source|confidence|age)/(c/0/0/0|zarr\.json)|zarr\.json)")


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


def _arrays(content: ShardContent) -> dict[str, np.ndarray]:
    labels = content.labels
    arrays = {"depth": np.stack([quantise(label.depth_m) for label in labels])}
    arrays["source"] = np.stack([label.source for label in labels])
    arrays["age"] = np.stack([label.age for label in labels])
    if confidences := [label.confidence for label in labels if label.confidence is not None]:
        arrays["confidence"] = np.stack(confidences)
    return arrays


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
    for frame, label in enumerate(labels):
        if label.K.shape != (3, 3) or not np.isfinite(label.K).all():
            raise ValueError(f"{where}: K of frame {frame} must be finite, (3,3)")
        points = label.points()
        if len(points.u) and not 1 <= points.source.min() <= points.source.max() <= max(Source):
            raise ValueError(f"{where}: frame {frame} holds an unknown source code, or a depth without a source")
        if len(points.u) and points.age.max() > MAX_AGE:
            raise ValueError(f"{where}: frame {frame} has an age above {MAX_AGE}")


def _encode(content: ShardContent) -> dict[str, memoryview]:
    """The files of the group, by path, sorted."""
    import google_crc32c
    import numcodecs.blosc
    import zarr
    from zarr.abc.codec import BytesBytesCodec
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    arrays = _arrays(content)
    dense = np.count_nonzero(arrays["depth"]) > DENSE_FRACTION * arrays["depth"].size
    attributes = {
        "format": "dense-depth labels",
        "schema_version": SCHEMA_VERSION,
        "kind": content.kind,
        "dataset": content.dataset,
        "scene_token": content.scene_token,
        "camera": content.camera,
        "image_size": {"width": content.labels[0].width, "height": content.labels[0].height},
        "depth_unit": f"1/{DEPTH_STEPS_PER_M} m",
        "age_unit": f"0.1 s, {MAX_AGE} = {MAX_AGE / 10} s or more",
        "source_codes": {source.name.lower(): source.value for source in Source},
        "sample_tokens": list(content.sample_tokens),
        "timestamps_us": [int(label.timestamp_us) for label in content.labels],
        "n_sweeps": [int(n) for n in content.n_sweeps],
        "K": [label.K.astype(np.float64).tolist() for label in content.labels],
        "frame_crc32c": {
            name: [google_crc32c.value(np.ascontiguousarray(frame)) for frame in array]
            for name, array in arrays.items()
        },
        "extra": content.attributes,
    }
    numcodecs.blosc.set_nthreads(1)  # the bytes must not depend on the machine
    buffers: dict[str, Any] = {}
    with zarr.config.set({"async.concurrency": 1}):  # frame by frame: a third less memory, and a worker has one core
        group = zarr.create_group(MemoryStore(buffers), attributes=attributes)
        for name, array in arrays.items():
            # Measured at 900x1600, 1 core, encode / decode ms and MB per frame. Depth, 6 % valid: zstd 1, 3, 5 give
            # 3.1/1.7 0.215, 3.3/1.6 0.207, 7.8/1.3 0.201; blosc-zstd3-bitshuffle 8.8/2.0 0.255. Dense depth:
            # blosc-zstd-bitshuffle 1, 3, 5 give 6.2/4.0 0.927, 10.1/2.7 0.905, 21.2/2.5 0.889; zstd3 11.6/2.9 0.932.
            # Codes fill 3 of 8 bits, so bitshuffle pays even when sparse: 0.105 MB against 0.142, at the same speed.
            # Ages change from pixel to pixel, so little pays for them: zstd 1, 3, 9 give 2.0/0.9 0.146, 2.2/0.9 0.148,
            # 14.5/0.7 0.128; blosc-zstd3-bitshuffle 4.8/1.2 0.144.
            codec: BytesBytesCodec = ZstdCodec(level=1 if name == "age" else 3)
            if name != "age" and (dense or name != "depth"):
                codec = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=array.itemsize)
            stored = group.create_array(
                name,
                shape=array.shape,
                dtype=array.dtype,
                chunks=(1, *array.shape[1:]),
                shards=array.shape,
                compressors=[codec, Crc32cCodec()],
                fill_value=FILL_VALUES[name],
                dimension_names=("frame", "row", "column"),
                config={"write_empty_chunks": True},
            )
            stored[...] = array
    return {name: memoryview(buffers[name].as_numpy_array()) for name in sorted(buffers)}


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

    Frames are decoded here, not by zarr-python: that takes 1.6 ms for what the codec does in 0.2 (256x704), and would
    answer a missing chunk with fill values. The layout is the Zarr v3 ``sharding_indexed`` codec's.
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
            CorruptShardError: A file is missing or has another size or other metadata, or an array another form.
        """
        self.path = path
        self._store, self._files, self._shape = open_store(store), tuple(files), (n_frames, height, width)
        if problems := find_problems(self._store, path, self._files, hashes=False):
            raise CorruptShardError(f"{problems[0]}; see `python -m catalog verify`")
        self._sizes = {file.path: file.bytes for file in self._files}
        self._attributes = self._metadata("zarr.json")["attributes"]
        if self._attributes.get("schema_version") != SCHEMA_VERSION:
            raise CorruptShardError(f"{path}: schema version {self._attributes.get('schema_version')} is unknown")
        self.camera: str = self._attributes["camera"]
        self.sample_tokens: list[str] = self._attributes["sample_tokens"]
        self.n_sweeps: list[int] = self._attributes["n_sweeps"]
        self._codecs: dict[str, Any] = {}
        self._chunks: dict[str, np.ndarray] = {}
        for name in FILL_VALUES:
            if name not in OPTIONAL or f"{name}/zarr.json" in self._sizes:
                self._codecs[name] = self._codec(name)
                self._chunks[name] = self._chunk_index(name)

    def read(self, index: int) -> Label:
        """The label of frame ``index``.

        Raises:
            CorruptShardError: The frame's bytes are damaged.
        """
        if not 0 <= index < self._shape[0]:
            raise IndexError(f"{self.path}: frame {index} of {self._shape[0]}")
        return Label.from_maps(
            depth_m=dequantise(self._frame("depth", index)),
            source=self._frame("source", index),
            K=np.array(self._attributes["K"][index]),
            sample_token=self.sample_tokens[index],
            camera=self.camera,
            timestamp_us=self._attributes["timestamps_us"][index],
            **{name: self._frame(name, index) if name in self._codecs else None for name in OPTIONAL},
        )

    def verify(self) -> list[str]:
        """Re-hashes every file; returns the problems, one line each."""
        return find_problems(self._store, self.path, self._files, hashes=True)

    def _metadata(self, name: str) -> dict[str, Any]:
        """A zarr.json, which is small enough to be hashed at every opening."""
        expected = next((file.sha256 for file in self._files if file.path == name), None)
        text = self._store.get(f"{self.path}/{name}") if expected else b""
        if hashlib.sha256(text).hexdigest() != expected:
            raise CorruptShardError(f"{self.path}/{name}: missing or changed since it was written")
        return json.loads(text)

    def _codec(self, name: str) -> Any:
        """The decompressor of an array, once its metadata agrees with the manifest; before anything is allocated."""
        import numcodecs

        meta = self._metadata(f"{name}/zarr.json")
        try:
            sharding = meta["codecs"][0]["configuration"]
            codecs = [codec["name"] for codec in sharding["codecs"] + sharding["index_codecs"]]
            compressor = codecs.pop(1)
            form = [meta["shape"], sharding["chunk_shape"], meta["data_type"], meta["fill_value"], codecs]
            frame, dtype = [1, *self._shape[1:]], str(_DTYPES[name])
            if form == [[*self._shape], frame, dtype, FILL_VALUES[name], ["bytes", "crc32c"] * 2]:
                return {"zstd": numcodecs.Zstd, "blosc": numcodecs.Blosc}[compressor]()
        except (KeyError, IndexError, TypeError) as error:
            raise CorruptShardError(f"{self.path}/{name}: not an array of labels: {error!r}") from error
        raise CorruptShardError(f"{self.path}/{name}: [shape, chunk, type, fill, codecs] {form} is not the manifest's")

    def _chunk_index(self, name: str) -> np.ndarray:
        """(T,2) offset and size in bytes of every frame: the last bytes of the shard file."""
        import google_crc32c

        path = f"{name}/c/0/0/0"
        size, n_frames = self._sizes.get(path, 0), self._shape[0]
        start = size - 16 * n_frames - 4
        tail = self._store.get(f"{self.path}/{path}", start, size) if start > 0 else b""
        if google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little") or not tail:
            raise CorruptShardError(f"{self.path}/{path}: the index of its frames is damaged")
        return np.frombuffer(tail[:-4], "<u8").reshape(n_frames, 2)

    def _frame(self, name: str, index: int) -> np.ndarray:
        import google_crc32c

        where = f"{self.path}: {name} of frame {index}"
        offset, size = (int(x) for x in self._chunks[name][index])
        if offset + size > self._sizes[f"{name}/c/0/0/0"] or size < 4:  # "no such chunk" is offset and size 2**64 - 1
            raise CorruptShardError(f"{where} is missing")
        data = self._store.get(f"{self.path}/{name}/c/0/0/0", offset, offset + size)
        if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise CorruptShardError(f"{where} is damaged (crc32c differs)")
        frame = np.empty(self._shape[1:], _DTYPES[name])
        try:
            self._codecs[name].decode(data[:-4], out=frame)
        except (ValueError, RuntimeError) as error:
            raise CorruptShardError(f"{where} cannot be decoded: {error}") from error
        # The hashed metadata holds this checksum, so not even another shard's file of the same size gets past it.
        if google_crc32c.value(frame) != self._attributes["frame_crc32c"][name][index]:
            raise CorruptShardError(f"{where} is not what was written (crc32c of the frame differs)")
        if name == "depth" and frame.max() == FILL_VALUES[name]:
            raise CorruptShardError(f"{where} holds 65535, which is never written")
        return frame
