"""What happens when others commit at the same time."""

from collections.abc import Mapping, Sequence

from catalog.manifest import Key, Row, key


class CommitConflict(Exception):  # noqa: N818  it is no error
    """Others committed first; nothing was committed, and the same command can be run again."""


class StaleRows(CommitConflict):
    """Others have changed rows that a commit was to replace."""


def rebase(rows: Sequence[Row], expected: Mapping[Key, Row], latest: Mapping[Key, Row], store: str) -> list[Row]:
    """The rows of a commit as they go on top of the latest version.

    New labels replace the labels that the caller saw, and new figures the row that it saw. Where another commit has put
    the very same labels there, its row stays, since it may have gained figures.

    Args:
        rows: The rows to commit.
        expected: The rows that the caller saw, by key; a key that is not in it had none.
        latest: The rows that there are now, by key.
        store: Names the store in messages.

    Raises:
        StaleRows: Anything else has changed under a row.
    """
    rebased, stale = [], []
    for row in rows:
        seen, now = expected.get(key(row)), latest.get(key(row))
        brings_labels = _labels(row) != _labels(seen)
        if now == seen or (brings_labels and _labels(now) == _labels(seen)):
            rebased.append(row)
        elif now and _labels(now) == _labels(row) and (brings_labels or row == seen):
            rebased.append(now)
        else:
            stale.append(key(row))
    if stale:
        kind, _, scene, camera = stale[0]
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise StaleRows(
            f"{store}: while this command was at work, another commit changed the {kind} labels of {scene} {camera}"
            f"{more}; to replace them, run it again"
        )
    return rebased


def _labels(row: Row | None) -> tuple[str, str] | None:
    """What tells the labels of a row from others: how they were made, and their bytes."""
    return (row["shard_id"], row["sha256"]) if row else None
