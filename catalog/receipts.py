"""Receipts: what an unfinished job has done. A receipt is the manifest row of one shard."""

import json
from collections.abc import Iterable

from catalog.manifest import SHARD_ID, Row, canonical_json, check_row
from dense_depth import InputError
from dense_depth.shards import NAME
from dense_depth.store import Bucket, Folder, StoredFile


class Receipts:
    """The receipts of one job: ``receipts/<job>/<shard id>.json``.

    Runs with one recipe are one job, whichever scenes they take: each finds what the others have done, and removes the
    receipts of its own shards only.
    """

    def __init__(self, store: Folder | Bucket, job: str):
        """Raises InputError for what cannot name a job."""
        if not NAME.fullmatch(job):
            raise InputError(f"job of receipts {job!r}: not a name (letters, digits, . _ -, at most 128)")
        self._store, self._folder = store, f"receipts/{job}"

    def write(self, row: Row) -> None:
        """Records that a shard is done; raises InputError for a bad row."""
        check_row(row)
        self._store.put(self._path(row["shard_id"]), canonical_json(row).encode())

    def rows(self) -> list[Row]:
        """The rows of the shards that were done; whether they are still in the store is not looked at."""
        found = [read_receipt(self._store, file.path) for file in self._store.walk(self._folder)]
        return [row for row in found if row]

    def renew(self) -> None:
        """Says that the job is at work again, for ``gc``: it counts as running while one of its receipts is young."""
        for file in self._store.walk(self._folder):
            if row := read_receipt(self._store, file.path):
                self.write(row)
                return

    def clear(self, shard_ids: Iterable[str]) -> None:
        """Removes the receipts of shards that a version holds now."""
        for shard_id in shard_ids:
            self._store.delete(self._path(shard_id))

    def _path(self, shard_id: str) -> str:
        if not SHARD_ID.fullmatch(shard_id):
            raise InputError(f"receipt {shard_id!r}: not a name (letters, digits, . _ -, at most 200)")
        return f"{self._folder}/{shard_id}.json"


def receipts_by_job(store: Folder | Bucket) -> dict[str, list[StoredFile]]:
    """The receipts of all jobs, by folder."""
    jobs: dict[str, list[StoredFile]] = {}
    for file in store.walk("receipts"):
        jobs.setdefault("/".join(file.path.split("/")[:2]), []).append(file)
    return jobs


def read_receipt(store: Folder | Bucket, path: str) -> Row | None:
    """The row of a receipt; None if it is gone: its shard has been committed since it was listed.

    Raises:
        InputError: The file is not a receipt.
    """
    try:
        row = json.loads(store.get(path))
        check_row(row)
        if not path.endswith(f"/{row['shard_id']}.json"):
            raise InputError(f"it is of shard {row['shard_id']}")
    except FileNotFoundError:
        return None
    except (InputError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{store.url}/{path}: not a receipt ({error}); delete it") from error
    return row
