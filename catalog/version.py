"""One immutable state of a store."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from catalog import manifest
from catalog.manifest import Row, file_entries
from dense_depth import InputError
from dense_depth.datasets.scene import CameraFrame
from dense_depth.label import Label, check_fits
from dense_depth.shards import CorruptShardError, ShardReader
from dense_depth.store import Bucket, Folder

if TYPE_CHECKING:
    import pyarrow as pa

OPEN_SHARDS = 256  # an open shard is some ten kilobytes and no file handle
VERSION_PATH = re.compile(r"versions/([0-9]{6,18})\.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Version:
    """One immutable state of the catalog: ``versions/<number>.json`` and the manifest it names."""

    store: Folder | Bucket
    number: int
    parent: int | None
    parent_manifest: str | None
    timestamp_ms: int
    operation: str
    manifest: str  # sha256
    recipe: dict[str, Any]
    recipe_hash: str
    code_version: str
    inputs: dict[str, Any]
    summary: dict[str, Any] | None
    commit_id: str  # tells this commit from any other with the same content

    @functools.cached_property
    def table(self) -> "pa.Table":
        """The manifest, one row per shard; raises InputError when its bytes are not what the version names."""
        path = f"manifests/{self.manifest}.parquet"
        data = read_file(self.store, path)
        if hashlib.sha256(data).hexdigest() != self.manifest:
            raise InputError(f"{self.store.url}/{path}: changed since it was written (its sha256 is not its name)")
        return manifest.from_bytes(data, f"{self.store.url}/{path}")

    def rows(self) -> list[Row]:
        """The manifest as plain values."""
        return self.table.to_pylist()

    def rows_of(self, kind: str, dataset: str, cameras: Sequence[str] = ()) -> list[Row]:
        """The rows of one kind and dataset, and of these cameras if any are given.

        Raises:
            InputError: There are none.
        """
        rows = [row for row in self.rows() if (row["kind"], row["dataset"]) == (kind, dataset)]
        if not rows:
            has = sorted({f"{row['kind']} ({row['dataset']})" for row in self.rows()})
            raise InputError(
                f"version {self.number}: no labels of kind {kind} ({dataset}); it has {', '.join(has) or 'none'}"
            )
        if cameras and not (rows := [row for row in rows if row["camera"] in cameras]):
            raise InputError(f"version {self.number}: no {kind} labels of {', '.join(cameras)}")
        return rows

    def read(self, sample_token: str, camera: str, kind: str | None = None) -> Label:
        """The label of one camera frame.

        Raises:
            InputError: There is none, or several fit and no kind is given.
            CorruptShardError: Its bytes are damaged.
        """
        reader, frame = self._find(sample_token, camera, kind)
        return reader.read(frame)

    def n_sweeps(self, sample_token: str, camera: str, kind: str | None = None) -> int:
        """How many sweeps the label of one camera frame was made from; raises as ``read``."""
        reader, frame = self._find(sample_token, camera, kind)
        return reader.n_sweeps[frame]

    def _find(self, sample_token: str, camera: str, kind: str | None) -> tuple[ShardReader, int]:
        """The shard with the label of a camera frame, and which of its frames it is."""
        found = [row for row in self._rows_with.get(sample_token, ()) if self._column("camera")[row] == camera]
        fitting = [row for row in found if kind in (None, self._column("kind")[row])]
        if len(fitting) != 1:
            has = sorted(f"{self._column('kind')[row]} ({self._column('dataset')[row]})" for row in found)
            raise InputError(
                f"version {self.number}: {'several labels fit' if fitting else 'no label fits'} sample {sample_token}, "
                f"camera {camera}, kind {kind or 'any'}; it has: {', '.join(has) or 'nothing'}"
            )
        reader = self._reader(fitting[0])
        if sample_token not in reader.sample_tokens or reader.camera != camera:
            raise CorruptShardError(f"{reader.path}: does not hold sample {sample_token} of {camera} as its row says")
        return reader, reader.sample_tokens.index(sample_token)

    def label_of(self, frame: CameraFrame, kind: str | None = None) -> Label:
        """The label of a camera frame of a dataset, after checking that it is of this frame.

        Raises:
            InputError: As ``read``, or the label is of another image.
        """
        label = self.read(frame.sample_token, frame.camera, kind)
        check_fits(label, frame)
        return label

    @functools.cached_property
    def _rows_with(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, tokens in enumerate(self.table["sample_tokens"]):
            for token in tokens.as_py():
                rows.setdefault(token, []).append(row)
        return rows

    @functools.cached_property
    def _column(self) -> Any:
        return functools.cache(lambda name: self.table[name].to_pylist())

    @functools.cached_property
    def _reader(self) -> Any:
        def open_shard(row_number: int) -> ShardReader:
            row = self.table.slice(row_number, 1).to_pylist()[0]
            shape = {name: row[name] for name in ("n_frames", "height", "width")}
            return ShardReader(self.store, row["path"], file_entries(row), **shape)

        return functools.lru_cache(OPEN_SHARDS)(open_shard)

    def __getstate__(self) -> dict[str, Any]:
        """A worker is sent what the version is, not what has been read of it."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def read_file(store: Folder | Bucket, path: str) -> bytes:
    """A file of a store; raises InputError when it is missing."""
    try:
        return store.get(path)
    except FileNotFoundError as error:
        raise InputError(f"{store.url}/{path}: missing") from error


def version_path(number: int) -> str:
    """Where the record of a version lies."""
    return f"versions/{number:06d}.json"


def version_body(version: Version) -> dict[str, Any]:
    """What a version record holds besides its own hash."""
    names = (field.name for field in dataclasses.fields(version) if field.name != "store")
    return {{"number": "version"}.get(name, name): getattr(version, name) for name in names}
