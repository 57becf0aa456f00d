"""Commits that say what they replace: nobody's newer labels or figures are reverted, in whatever order commits land."""

import itertools

import pytest
from conftest import add_shard, commit
from hypothesis import given
from hypothesis import strategies as st

from catalog import CommitConflict, StaleRows
from catalog.conflicts import rebase


def row(labels: str, figures: int = 0) -> dict:
    """As much of a row as conflicts look at."""
    about = {"kind": "accumulated", "dataset": "d", "scene_token": "scene1", "camera": "CAM_FRONT"}
    return {**about, "shard_id": f"id-{labels}", "sha256": labels, "quality": {"mae_m": figures}}


KEY = ("accumulated", "d", "scene1", "CAM_FRONT")
OLD, NEW, OTHER, MEASURED = row("old"), row("new"), row("other"), row("old", 1)
REFUSED = "refused"


@pytest.mark.parametrize(
    ("seen", "mine", "now", "result"),
    [
        # Nobody else was here.
        (None, NEW, None, NEW),
        (OLD, NEW, OLD, NEW),
        (OLD, MEASURED, OLD, MEASURED),
        (OLD, OLD, OLD, OLD),
        # Somebody put labels there.
        (None, NEW, OTHER, REFUSED),
        (OLD, NEW, OTHER, REFUSED),
        (OLD, MEASURED, OTHER, REFUSED),
        (OLD, OLD, OTHER, REFUSED),
        # The very same labels as mine, perhaps measured since.
        (None, NEW, NEW, NEW),
        (None, OLD, MEASURED, MEASURED),
        (OTHER, OLD, MEASURED, MEASURED),
        # Somebody measured the labels that were there.
        (OLD, NEW, MEASURED, NEW),
        (OLD, row("old", 2), MEASURED, REFUSED),
        (OLD, OLD, MEASURED, MEASURED),
        (MEASURED, row("old", 2), MEASURED, row("old", 2)),
        # The store lost them: no commit does that.
        (OLD, NEW, None, REFUSED),
    ],
)
def test_what_becomes_of_a_row(seen, mine, now, result):
    expected, latest = ({KEY: row} if row else {} for row in (seen, now))
    if result is REFUSED:
        with pytest.raises(
            StaleRows, match=r"the store: .* the accumulated labels of scene1 CAM_FRONT; .*run it again"
        ):
            rebase([mine], expected, latest, "the store")
    else:
        assert rebase([mine], expected, latest, "the store") == [result]


def test_one_stale_row_refuses_the_commit_and_is_named(cat, root):
    one, two, three = (add_shard(root, seed) for seed in (1, 2, 3))
    seen = commit(cat, one, two).rows_by_key()
    theirs = [add_shard(root, seed, n_sweeps=(1, 1, 1, 1)) for seed in (1, 2)]
    commit(cat, *theirs)
    mine = [add_shard(root, seed, n_sweeps=(2, 2, 2, 2)) for seed in (1, 2)]
    with pytest.raises(StaleRows, match="scene1 CAM_FRONT and 1 more"):
        commit(cat, three, *mine, expected=seen)
    assert cat.version("latest").rows() == theirs and issubclass(StaleRows, CommitConflict)
    seen = cat.latest().rows_by_key()
    assert commit(cat, three, *mine, expected=seen).rows() == [*mine, three]  # run again


def test_a_commit_that_lands_in_between_is_not_reverted(cat, root, monkeypatch):
    """The other commit lands after this one has read the latest version and merged, just before it publishes."""
    old, other = add_shard(root, 1), add_shard(root, 1, n_sweeps=(1, 1, 1, 1))
    seen = commit(cat, old).rows_by_key()
    measured = old | {"quality": old["quality"] | {"mae_m": 0.5}}
    plain = type(cat.store).put_if_absent

    def put_if_absent(self, path, data):
        monkeypatch.setattr(type(cat.store), "put_if_absent", plain)
        commit(cat, other)
        return plain(self, path, data)

    monkeypatch.setattr(type(cat.store), "put_if_absent", put_if_absent)
    with pytest.raises(StaleRows):
        commit(cat, measured, expected=seen)
    assert cat.version("latest").rows() == [other]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["read", "label", "measure"])), max_size=12))
def test_no_order_of_commits_reverts_labels_or_figures(steps):
    """Three writers of one key in any order: what a commit removes, its writer has seen.

    A history is checked against what each writer knew: labels are replaced only by who saw these labels, and figures of
    labels that stay are never lost.
    """
    now, seen, count = None, [None] * 3, itertools.count(1)
    for writer, step in steps:
        if step == "read":
            seen[writer] = now
            continue
        if step == "measure" and seen[writer] is None:
            continue
        if step == "label":
            mine = row(f"labels{next(count)}")
        else:
            mine = {**seen[writer], "quality": {**seen[writer]["quality"], f"figure{next(count)}": 1}}
        expected, latest = ({KEY: r} if r else {} for r in (seen[writer], now))
        try:
            (new,) = rebase([mine], expected, latest, "store")
        except StaleRows:
            assert now != seen[writer]  # refused for a reason
            continue
        if now is not None and new["sha256"] != now["sha256"]:
            assert seen[writer] is not None and seen[writer]["sha256"] == now["sha256"]
        elif now is not None:
            assert new["quality"].keys() >= now["quality"].keys()
        now = seen[writer] = new
