"""What a store no longer needs: versions expire, and garbage is collected."""

import re
import time

from catalog.manifest import canonical_json
from catalog.receipts import read_receipt, receipts_by_job
from catalog.version import live_numbers, read_record, read_tags, version_path
from dense_depth import InputError
from dense_depth.shards import SHARD_PATH
from dense_depth.store import Bucket, Folder


def expire(store: Folder | Bucket, keep_last: int, older_than_s: float, dry_run: bool) -> list[int]:
    """Marks versions as expired: they can no longer be opened, and ``collect`` frees what only they needed.

    The record of a version stays, with its recipe and inputs, and so does its number.

    Args:
        store: The store.
        keep_last: Keep so many of the newest versions, at least one.
        older_than_s: Keep what was committed in this time, in seconds.
        dry_run: Only list.

    Returns:
        The versions expired.

    Raises:
        InputError: ``keep_last`` is zero or less, or the store cannot be read.
    """
    if keep_last < 1:
        raise InputError(f"keep the last {keep_last} versions: must be one or more")
    now_ms = time.time_ns() // 1_000_000
    tagged = set(read_tags(store).values())
    old = [read_record(store, number) for number in live_numbers(store)[:-keep_last] if number not in tagged]
    expired = [version.number for version in old if now_ms - version.timestamp_ms >= 1000 * older_than_s]
    if dry_run:
        return expired
    for number in expired:
        mark = {"version": number, "expired_ms": now_ms}
        store.put_if_absent(version_path(number, "expired"), canonical_json(mark).encode())
    tagged = set(read_tags(store).values())  # a version may have been tagged since; see ``Catalog.tag``
    for number in tagged.intersection(expired):
        store.delete(version_path(number, "expired"))
    return [number for number in expired if number not in tagged]


def collect(store: Folder | Bucket, older_than_s: float, dry_run: bool) -> list[str]:
    """Deletes what nothing needs: shards and manifests of no version, receipts and staging of jobs that stopped.

    A shard that a receipt names is needed, however old. A job has stopped when its newest receipt is old: then its
    receipts go, and its shards with the next call, lest they vanish under a job that has just continued.

    Args:
        store: The store.
        older_than_s: Keep anything written in this time, in seconds; longer than a job takes from a shard to its
            receipt, and from one receipt to the next.
        dry_run: Only list.

    Returns:
        The paths deleted.

    Raises:
        InputError: A record, manifest or receipt cannot be read; nothing is deleted.
    """
    before = time.time() - older_than_s
    # First what is old, then what is needed: whatever appears in between is not on the first list. And receipts before
    # versions: a job commits first and then clears its receipts, so that one or the other names its shards.
    groups: dict[str, float] = {}
    for file in [*store.walk("shards"), *store.walk("manifests")]:
        path = re.sub(r"(?<=\.zarr)/.*", "", file.path)
        if SHARD_PATH.fullmatch(path) or path.startswith("manifests/"):
            groups[path] = max(groups.get(path, 0.0), file.modified_s)
    garbage = [file.path for file in store.leftovers() if file.modified_s < before]
    needed: set[str] = set()
    for job, files in sorted(receipts_by_job(store).items()):
        needed |= {row["path"] for file in files if (row := read_receipt(store, file.path))}
        if all(file.modified_s < before for file in files):
            garbage.append(job)
    for version in (read_record(store, number) for number in live_numbers(store)):
        needed |= {f"manifests/{version.manifest}.parquet", *version.table["path"].to_pylist()}
    garbage += sorted(path for path, modified_s in groups.items() if modified_s < before and path not in needed)
    # A worker that makes the same labels again renews their age, perhaps since the list was made; so does a job that
    # continues with its receipts.
    garbage = [path for path in garbage if all(file.modified_s < before for file in store.walk(path))]
    for path in garbage if not dry_run else ():
        store.delete(path)
    return garbage
