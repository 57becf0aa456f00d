"""The manifest: the table of all shards of a version. Equal labels give equal bytes, on any machine."""

import functools
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from catalog.figures import COLUMNS
from dense_depth import InputError
from dense_depth.shards import NAME, SHARD_PATH, FileEntry, ShardContent, ShardFiles, shard_sha256

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
Key = tuple[str, str, str, str]

QUALITY = tuple(COLUMNS)
SHARD_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")  # with ".json" still a file name
_SHA256 = re.compile(r"[0-9a-f]{64}")


@functools.cache
def schema() -> "pa.Schema":
    """Columns of the manifest."""
    import pyarrow as pa

    def required(name: str, kind: "pa.DataType") -> "pa.Field":
        return pa.field(name, kind, nullable=False)

    files = [required("path", pa.string()), required("bytes", pa.int64()), required("sha256", pa.string())]
    return pa.schema(
        [
            required("shard_id", pa.string()),
            required("kind", pa.string()),
            required("dataset", pa.string()),
            required("scene_token", pa.string()),
            required("camera", pa.string()),
            required("path", pa.string()),
            required("n_frames", pa.int32()),
            required("sample_tokens", pa.list_(required("item", pa.string()))),
            required("height", pa.int32()),
            required("width", pa.int32()),
            required("bytes", pa.int64()),
            required("sha256", pa.string()),
            required("valid_fraction", pa.float64()),
            pa.field("depth_min_m", pa.float64()),  # null when no pixel has a depth
            pa.field("depth_max_m", pa.float64()),
            required("n_sweeps_min", pa.int32()),
            _quality_field(QUALITY),
            required("source_shards", pa.list_(required("item", pa.string()))),
            required("files", pa.list_(required("item", pa.struct(files)))),
            required("recipe_hash", pa.string()),
        ]
    )


def _quality_field(names: Sequence[str]) -> "pa.Field":
    import pyarrow as pa

    return pa.field("quality", pa.struct([pa.field(name, pa.float64()) for name in names]), nullable=False)


def key(row: Row) -> Key:
    """What a row is about; a version holds one row per key."""
    return row["kind"], row["dataset"], row["scene_token"], row["camera"]


def canonical_json(value: Any) -> str:
    """JSON text that depends on the value alone; raises ValueError for nan and infinity."""
    plain = json.loads(json.dumps(value, allow_nan=False))  # tuples become lists, number keys strings
    return json.dumps(plain, sort_keys=True, indent=1) + "\n"


def json_sha256(value: Any) -> str:
    """Sha256 of a value as canonical JSON. Of a recipe (keep machine paths out of it) this is its ``recipe_hash``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def shard_row(
    content: ShardContent,
    shard: ShardFiles,
    recipe: Any,
    quality: dict[str, float | None] | None = None,
    *,
    shard_id: str,
    source_shards: Sequence[str] = (),
) -> Row:
    """The manifest row of a shard that was just written.

    Args:
        content: The labels.
        shard: What ``write_shard`` returned for them.
        recipe: What determines the labels apart from the data (hashed).
        quality: Some of the ``QUALITY`` figures.
        shard_id: Names the unit of work: known before its labels are, different whenever they may differ.
        source_shards: Paths of the shards the labels were made from.
    """
    first, depths = content.labels[0], [label.points().depth_m for label in content.labels]
    n_labelled = sum(map(len, depths))
    return {
        "shard_id": shard_id,
        "kind": content.kind,
        "dataset": content.dataset,
        "scene_token": content.scene_token,
        "camera": content.camera,
        "path": shard.path,
        "n_frames": len(content.labels),
        "sample_tokens": list(content.sample_tokens),
        "height": first.height,
        "width": first.width,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "valid_fraction": n_labelled / (len(content.labels) * first.height * first.width),
        "depth_min_m": min(float(depth.min()) for depth in depths if len(depth)) if n_labelled else None,
        "depth_max_m": max(float(depth.max()) for depth in depths if len(depth)) if n_labelled else None,
        "n_sweeps_min": int(min(content.n_sweeps)),
        "quality": dict.fromkeys(QUALITY) | (quality or {}),
        "source_shards": list(source_shards),
        "files": [file._asdict() for file in shard.files],
        "recipe_hash": json_sha256(recipe),
    }


def file_entries(row: Row) -> tuple[FileEntry, ...]:
    """The files of a row's shard."""
    return tuple(FileEntry(file["path"], file["bytes"], file["sha256"]) for file in row["files"])


def check_row(row: Row) -> None:
    """Raises InputError for a row that is incomplete, contradicts itself, or names anything outside the store."""
    where = f"row {row.get('shard_id')!r}"
    if wrong := row.keys() ^ set(schema().names):
        raise InputError(f"{where}: columns {sorted(wrong)} are missing or unknown")
    if wrong := row["quality"].keys() - set(QUALITY):
        raise InputError(f"{where}: quality {sorted(wrong)} is unknown")
    for name in (*key(row), *row["sample_tokens"]):
        if not NAME.fullmatch(name):
            raise InputError(f"{where}: {name!r} is not a name (letters, digits, . _ -, at most 128)")
    path = SHARD_PATH.fullmatch(row["path"])
    if not path or path[1] != row["kind"] or path[2] != row["sha256"][:16]:
        raise InputError(f"{where}: path {row['path']!r} is not shards/<kind>/<first 16 of sha256>.zarr")
    files = file_entries(row)
    if shard_sha256(files) != row["sha256"] or sum(file.bytes for file in files) != row["bytes"]:
        raise InputError(f"{where}: bytes or sha256 do not follow from its files")
    if row["n_frames"] != len(set(row["sample_tokens"])) or row["n_frames"] != len(row["sample_tokens"]):
        raise InputError(f"{where}: {row['n_frames']} frames but sample tokens {row['sample_tokens'][:3]}...")
    if min(row["n_frames"], row["height"], row["width"]) < 1 or not SHARD_ID.fullmatch(row["shard_id"]):
        raise InputError(f"{where}: empty, or its id is not a name (letters, digits, . _ -, at most 200)")
    if not _SHA256.fullmatch(row["recipe_hash"]) or not all(map(SHARD_PATH.fullmatch, row["source_shards"])):
        raise InputError(f"{where}: recipe_hash is not a sha256, or source_shards are not shard paths")
    numbers = [*row["quality"].values(), row["valid_fraction"], row["depth_min_m"], row["depth_max_m"]]
    if not all(math.isfinite(number) for number in numbers if number is not None):
        raise InputError(f"{where}: quality and depth figures must be finite or None")


def merge(old: "pa.Table | None", rows: Iterable[Row]) -> "pa.Table":
    """The old table with rows added; a row replaces the one with the same key. Sorted by key."""
    import pyarrow as pa

    merged: dict[Key, Row] = {} if old is None else {key(row): row for row in old.to_pylist()}
    new: dict[Key, Row] = {}
    for row in rows:
        check_row(row)
        if key(row) in new:
            raise InputError(f"row {row['shard_id']!r}: two rows of one commit are about {key(row)}")
        new[key(row)] = row
    merged |= new
    return pa.Table.from_pylist([merged[k] for k in sorted(merged)], schema=schema())


def to_bytes(table: "pa.Table") -> bytes:
    """The table as Parquet, every writer setting fixed."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        row_group_size=1 << 16,
        use_dictionary=True,
        write_statistics=True,
    )
    return sink.getvalue()


def from_bytes(data: bytes, name: str) -> "pa.Table":
    """Reads a manifest; raises InputError naming the file when it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without threads: Arrow's pool now and then aborts the process as it ends. pq.read_table would import pandas.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name}: not a manifest: {error}") from error
    if table.schema == schema():
        return table
    kept = table.schema.field("quality").type if "quality" in table.schema.names else None
    names = [field.name for field in kept] if isinstance(kept, pa.StructType) else []
    older = schema().set(schema().get_field_index("quality"), _quality_field(names))
    if not {*names} <= {*QUALITY} or table.schema != older:
        raise InputError(f"{name}: its columns are not those of this program's manifest; a newer program wrote it?")
    return pa.Table.from_pylist(table.to_pylist(), schema=schema())  # figures that were not known then are null
