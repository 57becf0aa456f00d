"""Versions, tags and receipts: the history of a store.

A commit writes shards first, the manifest second and ``versions/000007.json`` last, only if it is absent: that file is
the commit. Whoever finds the number taken reads the new latest version, merges again and tries the next number.
"""

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
from catalog.version import VERSION_PATH, Version, read_file, version_body, version_path
from dense_depth import InputError, __version__
from dense_depth.shards import NAME, SHARD_PATH, find_problems
from dense_depth.store import Bucket, Folder, is_url, open_store

if TYPE_CHECKING:
    pass

FORMAT = {"format": "dense-depth label store", "format_version": 2}
COMMIT_TRIES = 50
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CommitConflict(Exception):  # noqa: N818  it is no error
    """Other commits won every try; nothing was committed and the same commit can be tried again."""


class Diff(NamedTuple):
    """What changed from one version to another, by (kind, dataset, scene, camera)."""

    added: list[Row]
    removed: list[Row]
    changed: list[tuple[Row, Row]]


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
    def create(cls, store: str | Path | Folder | Bucket) -> "Catalog":
        """Makes an empty store, or opens the one that is there; raises InputError where there is anything else."""
        if not isinstance(store, Folder | Bucket) and not is_url(store):
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
            text = read_file(self.store, file.path).decode(errors="replace").strip()
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
        found = (VERSION_PATH.fullmatch(file.path) for file in self.store.walk("versions"))
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
            raise InputError(
                f"{self.store.url}/{version_path(version.parent)}: changed after version {number} was made of it"
            )
        version.table  # noqa: B018  a version that cannot be read is not handed out
        return version

    def _record(self, number: int) -> Version:
        """The record of a version, checked against its own hash."""
        name = f"{self.store.url}/{version_path(number)}"
        try:
            body = json.loads(read_file(self.store, version_path(number)))
            sha256, body["number"] = body.pop("sha256"), body.pop("version")
            version = Version(store=self.store, **body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{name}: not a complete version record ({error})") from error
        if sha256 != json_sha256(version_body(version)) or (version.number, version.parent) != (
            number,
            number - 1 or None,
        ):
            raise InputError(f"{name}: changed since it was written (its sha256 differs)")
        if not _SHA256.fullmatch(version.manifest):
            raise InputError(f"{name}: {version.manifest!r} does not name a manifest")
        return version

    def _publish(self, version: Version) -> bool:
        """Writes the version record unless its number is taken; whether this very commit is in the store."""
        body = version_body(version)
        data = canonical_json({**body, "sha256": json_sha256(body)}).encode()
        failure = None
        try:
            if self.store.put_if_absent(version_path(version.number), data):
                return True
        except Exception as error:
            failure = error
        # "Exists" may be our own first request, repeated by the client; after an error the outcome is unknown.
        try:
            return self.store.get(version_path(version.number)) == data
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
            row = json.loads(read_file(self.store, path))
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
