"""One immutable state of a store, and its record on disk."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from catalog import manifest
from catalog.manifest import Key, Row, canonical_json, file_entries, json_sha256
from dense_depth import InputError
from dense_depth.datasets.scene import CameraFrame
from dense_depth.label import Label, check_fits
from dense_depth.shards import CorruptShardError, ShardReader
from dense_depth.store import Bucket, Folder

if TYPE_CHECKING:
    import pyarrow as pa

OPEN_SHARDS = 256  # an open shard is some ten kilobytes and no file handle
_VERSION_PATH = re.compile(r"(?:versions|expired)/([0-9]{6,18})\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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

    def rows_by_key(self) -> dict[Key, Row]:
        """The rows by what they are about."""
        return {manifest.key(row): row for row in self.rows()}

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


def version_path(number: int, folder: str = "versions") -> str:
    """Where the record of a version lies, or with ``expired`` the mark that says that it has expired."""
    return f"{folder}/{number:06d}.json"


def version_numbers(store: Folder | Bucket, folder: str = "versions") -> list[int]:
    """The versions that have a record, or with ``expired`` those that have expired; in order."""
    found = (_VERSION_PATH.fullmatch(file.path) for file in store.walk(folder))
    return sorted(int(match[1]) for match in found if match)


def live_numbers(store: Folder | Bucket) -> list[int]:
    """The versions that have not expired, in order."""
    gone = set(version_numbers(store, "expired"))
    return [number for number in version_numbers(store) if number not in gone]


def read_tags(store: Folder | Bucket) -> dict[str, int]:
    """Tag name -> version number; raises InputError for a tag that is damaged."""
    tags: dict[str, int] = {}
    for file in sorted(store.walk("tags")):
        text = read_file(store, file.path).decode(errors="replace").strip()
        if not (text.isascii() and text.isdigit()):
            raise InputError(f"{store.url}/{file.path}: {text[:40]!r} is not a version number; tag it again")
        tags[file.path.removeprefix("tags/")] = int(text)
    return tags


def open_version(store: Folder | Bucket, number: int) -> Version:
    """A version whose record, manifest and parent's record are what was committed; raises InputError when not."""
    version = read_record(store, number)
    check_parent(version)
    version.table  # noqa: B018  a version that cannot be read is not handed out
    return version


def read_record(store: Folder | Bucket, number: int) -> Version:
    """A version by its record alone, checked against the record's own hash; raises InputError when it is damaged."""
    name = f"{store.url}/{version_path(number)}"
    try:
        body = json.loads(read_file(store, version_path(number)))
        sha256, body["number"] = body.pop("sha256"), body.pop("version")
        version = Version(store=store, **body)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{name}: not a complete version record ({error})") from error
    if sha256 != json_sha256(_body(version)) or (version.number, version.parent) != (number, number - 1 or None):
        raise InputError(f"{name}: changed since it was written (its sha256 differs)")
    if not _SHA256.fullmatch(version.manifest):
        raise InputError(f"{name}: {version.manifest!r} does not name a manifest")
    return version


def check_parent(version: Version) -> None:
    """Raises InputError when the record of the version before is not the one that this version was made of."""
    parent = version.parent
    if parent is not None and read_record(version.store, parent).manifest != version.parent_manifest:
        name = f"{version.store.url}/{version_path(parent)}"
        raise InputError(f"{name}: changed after version {version.number} was made of it")


def publish(version: Version) -> bool:
    """Writes the record unless its number is taken; whether this very commit is in the store."""
    store, path, body = version.store, version_path(version.number), _body(version)
    data = canonical_json({**body, "sha256": json_sha256(body)}).encode()
    failure = None
    try:
        if store.put_if_absent(path, data):
            return True
    except Exception as error:
        failure = error
    # "Exists" may be our own first request, repeated by the client; after an error the outcome is unknown.
    try:
        return store.get(path) == data
    except FileNotFoundError:
        if failure:
            raise failure from None
        return False


def read_file(store: Folder | Bucket, path: str) -> bytes:
    """A file of a store; raises InputError when it is missing."""
    try:
        return store.get(path)
    except FileNotFoundError as error:
        raise InputError(f"{store.url}/{path}: missing") from error


def _body(version: Version) -> dict[str, Any]:
    """What a version record holds besides its own hash."""
    names = (field.name for field in dataclasses.fields(version) if field.name != "store")
    return {{"number": "version"}.get(name, name): getattr(version, name) for name in names}
