"""The history of a store: versions and tags.

A commit writes shards first, the manifest second and ``versions/000007.json`` last, only if it is absent: that file is
the commit. Whoever finds the number taken reads the new latest version, merges again and tries the next number. Records
of versions are never changed or deleted: a version that has expired is marked by ``expired/000007.json``, and keeps its
number, its recipe and its place in the chain.
"""

import hashlib
import json
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from catalog import garbage, manifest
from catalog.conflicts import CommitConflict, rebase
from catalog.manifest import Key, Row, canonical_json, file_entries, json_sha256
from catalog.receipts import Receipts
from catalog.version import (
    Version,
    check_parent,
    live_numbers,
    open_version,
    publish,
    read_record,
    read_tags,
    version_numbers,
)
from dense_depth import InputError, __version__
from dense_depth.shards import NAME, CorruptShardError, find_problems
from dense_depth.store import Bucket, Folder, holds_anything, open_store

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = {"format": "dense-depth label store", "format_version": 2}
COMMIT_TRIES = 50


class Diff(NamedTuple):
    """What changed from one version to another, by (kind, dataset, scene, camera)."""

    added: list[Row]
    removed: list[Row]
    changed: list[tuple[Row, Row]]  # other labels
    measured: list[tuple[Row, Row]]  # the same labels, with other figures of their quality


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
            raise InputError(
                f"{store}/store.json: {marker} is not the format of this program, {FORMAT}; "
                "make the labels again, into a new --store"
            )

    @classmethod
    def find(cls, store: str | Path) -> "Catalog | None":
        """Opens the store that is there, or returns None where nothing is yet; raises InputError for anything else."""
        return cls(store) if holds_anything(store) else None

    @classmethod
    def create(cls, store: str | Path | Folder | Bucket) -> "Catalog":
        """Makes an empty store, or opens the one that is there; raises InputError where there is anything else."""
        place = open_store(store, create=True)
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
        return open_version(self.store, self._resolve(ref))

    def latest(self) -> Version | None:
        """The newest version, or None if the store has none yet; raises InputError as ``version``."""
        numbers = version_numbers(self.store)
        return open_version(self.store, numbers[-1]) if numbers else None

    def versions(self, *, expired: bool = False) -> list[Version]:
        """All versions, oldest first, with ``expired`` those as well; their manifests are read only when asked for."""
        return [read_record(self.store, number) for number in self._numbers(expired=expired)]

    def tags(self) -> dict[str, int]:
        """Tag name -> version number."""
        return read_tags(self.store)

    def commit(
        self,
        rows: Sequence[Row],
        *,
        operation: str,
        recipe: dict[str, Any],
        inputs: dict[str, Any],
        summary: dict[str, Any] | None = None,
        expected: Mapping[Key, Row] | None = None,
    ) -> Version:
        """Adds rows to the latest version, as the next version; a row replaces the one with the same key.

        Args:
            rows: Manifest rows (see ``manifest.shard_row``) of shards that are in the store.
            operation: The command, in a word.
            recipe: What determines the labels apart from the data.
            inputs: What they were made from.
            summary: Figures about this commit.
            expected: The rows to replace, as the caller saw them (``Version.rows_by_key``); a key that is not in it had
                none. What others have committed since is kept or refused, see ``conflicts.rebase``. Without it, rows
                replace whatever is there.

        Returns:
            The new version, or the latest one when the rows change nothing.

        Raises:
            InputError: A row is not valid, or its shard is not in the store.
            StaleRows: Others have changed the rows to replace; nothing is committed.
            CommitConflict: Others committed first, every time; nothing is committed.
            CorruptShardError: A shard vanished during the commit, and the new version lacks it.
        """
        manifest.merge(None, rows)  # a bad row is an error before any shard is looked for
        if problems := self._problems(rows, hashes=False):
            raise InputError(f"nothing committed, shards are damaged: {'; '.join(problems[:5])}")
        for attempt in range(COMMIT_TRIES):
            latest = self.latest()
            table = self._merge(latest, rows, expected)
            if latest and table.equals(latest.table):
                return latest
            version = Version(
                store=self.store,
                number=latest.number + 1 if latest else 1,
                parent=latest.number if latest else None,
                parent_manifest=latest.manifest if latest else None,
                timestamp_ms=time.time_ns() // 1_000_000,
                operation=operation,
                manifest=self._write_manifest(table),
                recipe=recipe,
                recipe_hash=json_sha256(recipe),
                code_version=__version__,
                inputs=inputs,
                summary=summary,
                commit_id=uuid.uuid4().hex,
            )
            if publish(version):
                return self._published(version, table, rows)
            time.sleep(random.uniform(0, min(0.01 * 2**attempt, 0.5)))
        raise CommitConflict(f"{self.store.url}: other commits won {COMMIT_TRIES} times; run it again")

    def tag(self, name: str, number: int, *, move: bool = True) -> None:
        """Names a version; an existing tag moves, unless ``move`` is false (then InputError)."""
        check_tag(name)
        self._resolve(number)
        data = f"{number}\n".encode()
        if move:
            self.store.put(f"tags/{name}", data)
        elif not self.store.put_if_absent(f"tags/{name}", data) and self.tags()[name] != number:
            raise InputError(f"tag {name!r} names version {self.tags()[name]} and is not to be moved")
        self._resolve(number)  # it may have expired; ``expire`` looks for tags once more, too

    def verify(self, ref: int | str) -> list[str]:
        """Checks a version, its ancestors' records and manifests, and every byte of its shards; lists the problems.

        Of versions that have expired the records are checked.
        """
        problems: list[str] = []
        latest = self._resolve(ref)
        expired = version_numbers(self.store, "expired")
        for number in range(latest, 0, -1):
            try:
                if number in expired:
                    check_parent(read_record(self.store, number))
                    continue
                version = open_version(self.store, number)
                if number == latest:
                    problems += self._problems(version.rows(), hashes=True)
            except InputError as error:
                problems.append(str(error))
        return problems

    def diff(self, a: int | str, b: int | str) -> Diff:
        """The shards that version ``b`` adds to, removes from, changes in or has measured since version ``a``."""
        old, new = self.version(a).rows_by_key(), self.version(b).rows_by_key()
        diff = Diff([new[k] for k in new if k not in old], [old[k] for k in old if k not in new], [], [])
        for k in sorted(old.keys() & new.keys()):
            if old[k] | {"quality": new[k]["quality"]} != new[k]:
                diff.changed.append((old[k], new[k]))
            elif old[k] != new[k]:
                diff.measured.append((old[k], new[k]))
        return diff

    def receipts(self, job: str) -> Receipts:
        """What a job has done so far; raises InputError for what cannot name a job."""
        return Receipts(self.store, job)

    def intact(self, rows: Sequence[Row]) -> list[Row]:
        """The rows whose shards are in the store, every file with its size; ``verify`` checks the bytes too."""
        return [row for row, problems in zip(rows, self._find_problems(rows, hashes=False)) if not problems]

    def expire(self, *, keep_last: int = 10, older_than_s: float = 0.0, dry_run: bool = False) -> list[int]:
        """Lets old versions go, all but those with a tag and the last ones; see ``garbage.expire``."""
        return garbage.expire(self.store, keep_last, older_than_s, dry_run)

    def gc(self, *, older_than_s: float = 24 * 3600, dry_run: bool = False) -> list[str]:
        """Deletes what no version and no running job needs; see ``garbage.collect``."""
        return garbage.collect(self.store, older_than_s, dry_run)

    def _numbers(self, *, expired: bool = False) -> list[int]:
        return version_numbers(self.store) if expired else live_numbers(self.store)

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
            what = f"version {text!r} has expired" if number in self._numbers(expired=True) else f"no version {text!r}"
            raise InputError(f"{self.store.url}: {what}; versions: {len(numbers)}, tags: {tags}")
        return number

    def _merge(self, latest: Version | None, rows: Sequence[Row], expected: Mapping[Key, Row] | None) -> "pa.Table":
        """The table of the latest version with the rows of a commit; raises StaleRows."""
        if expected is not None:
            rows = rebase(rows, expected, latest.rows_by_key() if latest else {}, self.store.url)
        return manifest.merge(latest.table if latest else None, rows)

    def _write_manifest(self, table: "pa.Table") -> str:
        """Stores the table; returns its hash."""
        data = manifest.to_bytes(table)
        sha256 = hashlib.sha256(data).hexdigest()
        self.store.put(f"manifests/{sha256}.parquet", data)
        return sha256

    def _published(self, version: Version, table: "pa.Table", rows: Sequence[Row]) -> Version:
        """Looks once more at what a ``gc`` may have deleted before the new version protected it."""
        try:
            self.store.get(f"manifests/{version.manifest}.parquet")
        except FileNotFoundError:
            self._write_manifest(table)
        if problems := self._problems(rows, hashes=False):
            raise CorruptShardError(
                f"version {version.number} was committed, but shards vanished meanwhile: {'; '.join(problems[:5])}; "
                "make the labels again by the same command, which repairs it"
            )
        return open_version(self.store, version.number)

    def _problems(self, rows: Sequence[Row], *, hashes: bool) -> list[str]:
        return [problem for problems in self._find_problems(rows, hashes=hashes) for problem in problems]

    def _find_problems(self, rows: Sequence[Row], *, hashes: bool) -> list[list[str]]:
        """What is wrong with the shard of each row."""
        with ThreadPoolExecutor(8) as pool:  # hashing and requests both leave Python
            look = partial(find_problems, self.store, hashes=hashes)
            return list(pool.map(look, [row["path"] for row in rows], map(file_entries, rows)))


def check_tag(name: str) -> None:
    """Raises InputError for what cannot name a version."""
    if not NAME.fullmatch(name) or name.isdigit() or name == "latest":
        raise InputError(f"tag {name!r}: use letters, digits, . _ - (at most 128), not a number and not 'latest'")
