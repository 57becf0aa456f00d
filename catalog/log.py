"""Versions, tags and receipts: the history of a store.

A commit writes shards first, the manifest second and ``versions/000007.json`` last, only if it is absent: that file is
the commit. Whoever finds the number taken reads the new latest version, merges again and tries the next number.
"""

import dataclasses
import functools
import hashlib
import json
import random
import re
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from catalog import manifest
from catalog.manifest import Row, canonical_json, file_entries, json_sha256
from dense_depth import InputError, __version__
from dense_depth.storage import (
    NAME,
    SHARD_PATH,
    CorruptShardError,
    Label,
    ShardReader,
    find_problems,
)
from dense_depth.store import Bucket, Folder, open_store

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = {"format": "dense-depth label store", "format_version": 1}
COMMIT_TRIES = 50
OPEN_SHARDS = 256  # an open shard is some ten kilobytes and no file handle
_VERSION_PATH = re.compile(r"versions/([0-9]{6,18})\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CommitConflict(Exception):  # noqa: N818  it is no error
    """Other commits won every try; nothing was committed and the same commit can be tried again."""


class Diff(NamedTuple):
    """What changed from one version to another, by (kind, dataset, scene, camera)."""

    added: list[Row]
    removed: list[Row]
    changed: list[tuple[Row, Row]]


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
        data = _get(self.store, path)
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
        return reader.read(reader.sample_tokens.index(sample_token))

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

    def __reduce__(self) -> tuple[Any, ...]:
        """A data loader's worker is sent where the version is, not what has been read of it."""
        return _reopen, (self.store.url, self.number)


def _reopen(url: str, number: int) -> Version:
    return Catalog(url).version(number)


class Catalog:
    """The versions of a label store: a folder, or a bucket by URL."""

    def __init__(self, store: str | Path | Folder | Bucket):
        """Opens a store; raises InputError when it is not one."""
        try:
            self.store = open_store(store)
            marker = json.loads(self.store.get("store.json"))
        except (InputError, FileNotFoundError) as error:
            raise InputError(
                f"{store}: not a label store (no versions/, no store.json); "
                "create one with pipelines/accumulate.py --store"
            ) from error
        except ValueError as error:
            raise InputError(f"{store}/store.json: not JSON: {error}") from error
        if marker != FORMAT:
            raise InputError(f"{store}/store.json: {marker} is not the format of this program, {FORMAT}")

    @classmethod
    def create(cls, store: str | Path | Folder | Bucket) -> "Catalog":
        """Makes an empty store, or opens the one that is there; raises InputError where there is anything else."""
        if not isinstance(store, Folder | Bucket) and "://" not in str(store):
            Path(store).mkdir(parents=True, exist_ok=True)
        place = open_store(store)
        try:
            place.get("store.json")
        except FileNotFoundError:
            # staging/: another process is creating the store at this moment
            found = next((file.path for file in place.walk("") if not file.path.startswith("staging/")), "store.json")
            if found != "store.json":
                raise InputError(f"{store}: not empty and not a label store ({found}); give another folder") from None
            place.put_if_absent("store.json", canonical_json(FORMAT).encode())
        return cls(place)

    def version(self, ref: int | str) -> Version:
        """Opens a version by number, tag or "latest".

        Raises:
            InputError: There is no such version, or its files are not what was committed.
        """
        return self._open(self._resolve(ref))

    def versions(self) -> list[Version]:
        """All versions, oldest first; their manifests are read only when asked for."""
        return [self._record(number) for number in self._numbers()]

    def tags(self) -> dict[str, int]:
        """Tag name -> version number."""
        tags: dict[str, int] = {}
        for file in sorted(self.store.walk("tags")):
            text = _get(self.store, file.path).decode(errors="replace").strip()
            if not (text.isascii() and text.isdigit()):
                raise InputError(f"{self.store.url}/{file.path}: {text[:40]!r} is not a version number; tag it again")
            tags[file.path.removeprefix("tags/")] = int(text)
        return tags

    def commit(
        self,
        rows: Sequence[Row],
        *,
        operation: str,
        recipe: dict[str, Any],
        inputs: dict[str, Any],
        summary: dict[str, Any] | None = None,
    ) -> Version:
        """Adds rows to the latest version, as the next version; a row replaces the one with the same key.

        Args:
            rows: Manifest rows (see ``manifest.shard_row``) of shards that are in the store.
            operation: The command, in a word.
            recipe: What determines the labels apart from the data.
            inputs: What they were made from.
            summary: Figures about this commit.

        Returns:
            The new version, or the latest one when the rows change nothing.

        Raises:
            InputError: A row is not valid, or its shard is not in the store.
            CommitConflict: Others committed first, every time.
        """
        manifest.merge(None, rows)  # a bad row is an error before any shard is looked for
        if problems := self._problems(rows, hashes=False):
            raise InputError(f"nothing committed, shards are damaged: {'; '.join(problems[:5])}")
        for attempt in range(COMMIT_TRIES):
            numbers = self._numbers()
            latest = self._open(numbers[-1]) if numbers else None
            table = manifest.merge(latest.table if latest else None, rows)
            if latest and table.equals(latest.table):
                return latest
            data = manifest.to_bytes(table)
            sha256 = hashlib.sha256(data).hexdigest()
            self.store.put(f"manifests/{sha256}.parquet", data)
            version = Version(
                store=self.store,
                number=latest.number + 1 if latest else 1,
                parent=latest.number if latest else None,
                parent_manifest=latest.manifest if latest else None,
                timestamp_ms=time.time_ns() // 1_000_000,
                operation=operation,
                manifest=sha256,
                recipe=recipe,
                recipe_hash=json_sha256(recipe),
                code_version=__version__,
                inputs=inputs,
                summary=summary,
                commit_id=uuid.uuid4().hex,
            )
            if self._publish(version):
                return self._open(version.number)
            time.sleep(random.uniform(0, min(0.01 * 2**attempt, 0.5)))
        raise CommitConflict(f"{self.store.url}: other commits won {COMMIT_TRIES} times; run it again")

    def tag(self, name: str, number: int, *, move: bool = True) -> None:
        """Names a version; an existing tag moves, unless ``move`` is false (then InputError)."""
        check_tag(name)
        if number not in self._numbers():
            raise InputError(f"tag {name!r}: there is no version {number}")
        data = f"{number}\n".encode()
        if move:
            self.store.put(f"tags/{name}", data)
        elif not self.store.put_if_absent(f"tags/{name}", data) and self.tags()[name] != number:
            raise InputError(f"tag {name!r} names version {self.tags()[name]} and is not to be moved")

    def verify(self, ref: int | str) -> list[str]:
        """Checks a version, its ancestors' records and manifests, and every byte of its shards; lists the problems."""
        problems: list[str] = []
        latest = self._resolve(ref)
        for number in range(latest, 0, -1):
            try:
                version = self._open(number)
                if number == latest:
                    problems += self._problems(version.rows(), hashes=True)
            except InputError as error:
                problems.append(str(error))
        return problems

    def diff(self, a: int | str, b: int | str) -> Diff:
        """The shards that version ``b`` adds to, removes from and changes in version ``a``."""
        old = {manifest.key(row): row for row in self.version(a).rows()}
        new = {manifest.key(row): row for row in self.version(b).rows()}
        return Diff(
            added=[new[k] for k in new if k not in old],
            removed=[old[k] for k in old if k not in new],
            changed=[(old[k], new[k]) for k in old if k in new and old[k] != new[k]],
        )

    def write_receipt(self, job: str, shard_id: str, row: Row) -> None:
        """Records that one shard of a job is done."""
        manifest.check_row(row)
        self.store.put(self._receipt_path(job, shard_id), canonical_json(row).encode())

    def receipts(self, job: str) -> dict[str, Row]:
        """Shard id -> row of what a job has done, where the shard is still in the store."""
        paths = [file.path for file in self.store.walk(self._receipt_path(job))]
        rows = {Path(path).name.removesuffix(".json"): self._receipt(path) for path in paths}
        return {shard_id: row for shard_id, row in rows.items() if self.intact([row])}

    def intact(self, rows: Sequence[Row]) -> list[Row]:
        """The rows whose shards are in the store, every file with its size; ``verify`` checks the bytes too."""
        return [row for row in rows if not find_problems(self.store, row["path"], file_entries(row), hashes=False)]

    def clear_receipts(self, job: str) -> None:
        """Forgets a job that has been committed."""
        for file in list(self.store.walk(self._receipt_path(job))):
            self.store.delete(file.path)

    def gc(self, *, older_than_s: float = 24 * 3600, dry_run: bool = False) -> list[str]:
        """Deletes what nothing needs: shards and manifests of no version, receipts and staging of jobs that stopped.

        Args:
            older_than_s: Keep anything written in this time, in seconds. It must be longer than a job takes from a
                shard to its receipt; a job counts as running until its newest receipt is older.
            dry_run: Only list.

        Returns:
            The paths deleted.
        """
        before = time.time() - older_than_s
        # First what is old, then what is needed: whatever appears in between is not on the first list.
        groups: dict[str, float] = {}
        for file in [*self.store.walk("shards"), *self.store.walk("manifests")]:
            path = re.sub(r"(?<=\.zarr)/.*", "", file.path)
            if SHARD_PATH.fullmatch(path) or path.startswith("manifests/"):
                groups[path] = max(groups.get(path, 0.0), file.modified_s)
        garbage = [file.path for file in self.store.leftovers() if file.modified_s < before]
        jobs: dict[str, dict[str, float]] = {}
        for file in self.store.walk("receipts"):
            jobs.setdefault(file.path.split("/")[1], {})[file.path] = file.modified_s
        needed: set[str] = set()
        for receipts in jobs.values():
            if max(receipts.values()) < before:
                garbage += sorted(receipts)
            else:
                needed |= {self._receipt(path)["path"] for path in receipts}
        for version in self.versions():
            needed |= {f"manifests/{version.manifest}.parquet", *version.table["path"].to_pylist()}
        garbage += sorted(path for path, modified_s in groups.items() if modified_s < before and path not in needed)
        # A worker that makes the same labels again renews their age, perhaps since the list was made.
        garbage = [path for path in garbage if all(file.modified_s < before for file in self.store.walk(path))]
        for path in garbage if not dry_run else ():
            self.store.delete(path)
        return garbage

    def _numbers(self) -> list[int]:
        found = (_VERSION_PATH.fullmatch(file.path) for file in self.store.walk("versions"))
        return sorted(int(match[1]) for match in found if match)

    def _resolve(self, ref: int | str) -> int:
        numbers, text = self._numbers(), str(ref)
        if text == "latest":
            number = numbers[-1] if numbers else 0
        elif text.isascii() and text.isdigit():
            number = int(text)
        else:
            number = self.tags().get(text, 0)
        if number not in numbers:
            tags = ", ".join(f"{name} -> {tagged}" for name, tagged in self.tags().items()) or "none"
            raise InputError(f"{self.store.url}: no version {text!r}; versions: {len(numbers)}, tags: {tags}")
        return number

    def _open(self, number: int) -> Version:
        """A version whose record, manifest and parent's record are what was committed."""
        version = self._record(number)
        if version.parent is not None and self._record(version.parent).manifest != version.parent_manifest:
            raise InputError(f"{self.store.url}/{_path(version.parent)}: changed after version {number} was made of it")
        version.table  # noqa: B018  a version that cannot be read is not handed out
        return version

    def _record(self, number: int) -> Version:
        """The record of a version, checked against its own hash."""
        name = f"{self.store.url}/{_path(number)}"
        try:
            body = json.loads(_get(self.store, _path(number)))
            sha256, body["number"] = body.pop("sha256"), body.pop("version")
            version = Version(store=self.store, **body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{name}: not a complete version record ({error})") from error
        if sha256 != json_sha256(_body(version)) or (version.number, version.parent) != (number, number - 1 or None):
            raise InputError(f"{name}: changed since it was written (its sha256 differs)")
        if not _SHA256.fullmatch(version.manifest):
            raise InputError(f"{name}: {version.manifest!r} does not name a manifest")
        return version

    def _publish(self, version: Version) -> bool:
        """Writes the version record unless its number is taken; whether this very commit is in the store."""
        body = _body(version)
        data = canonical_json({**body, "sha256": json_sha256(body)}).encode()
        failure = None
        try:
            if self.store.put_if_absent(_path(version.number), data):
                return True
        except Exception as error:
            failure = error
        # "Exists" may be our own first request, repeated by the client; after an error the outcome is unknown.
        try:
            return self.store.get(_path(version.number)) == data
        except FileNotFoundError:
            if failure:
                raise failure from None
            return False

    def _problems(self, rows: Sequence[Row], *, hashes: bool) -> list[str]:
        with ThreadPoolExecutor(8) as pool:  # hashing and requests both leave Python
            found = pool.map(lambda row: find_problems(self.store, row["path"], file_entries(row), hashes=hashes), rows)
            return [problem for problems in found for problem in problems]

    def _receipt(self, path: str) -> Row:
        try:
            row = json.loads(_get(self.store, path))
            manifest.check_row(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{self.store.url}/{path}: not a receipt ({error}); delete it") from error
        return row

    def _receipt_path(self, job: str, shard_id: str | None = None) -> str:
        if not NAME.fullmatch(job) or not (shard_id is None or manifest.SHARD_ID.fullmatch(shard_id)):
            raise InputError(f"receipt {job!r}, {shard_id!r}: not names (letters, digits, . _ -)")
        return f"receipts/{job}" + (f"/{shard_id}.json" if shard_id else "")


def check_tag(name: str) -> None:
    """Raises InputError for what cannot name a version."""
    if not NAME.fullmatch(name) or name.isdigit() or name == "latest":
        raise InputError(f"tag {name!r}: use letters, digits, . _ - (at most 128), not a number and not 'latest'")


def _path(number: int) -> str:
    return f"versions/{number:06d}.json"


def _body(version: Version) -> dict[str, Any]:
    """What a version record holds besides its own hash."""
    names = (field.name for field in dataclasses.fields(version) if field.name != "store")
    return {{"number": "version"}.get(name, name): getattr(version, name) for name in names}


def _get(store: Folder | Bucket, path: str) -> bytes:
    try:
        return store.get(path)
    except FileNotFoundError as error:
        raise InputError(f"{store.url}/{path}: missing") from error
