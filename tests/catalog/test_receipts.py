"""Receipts: jobs find what was done, and remove only their own."""

import json
import os
import shutil

import pytest
from conftest import add_shard, commit, make_old

from dense_depth import InputError


def test_receipts(cat, root):
    rows = [add_shard(root, 1), add_shard(root, 2)]
    receipts = cat.receipts("job1")
    for row in rows:
        receipts.write(row)
    assert sorted(receipts.rows(), key=lambda row: row["shard_id"]) == rows == cat.intact(rows)
    assert cat.receipts("job2").rows() == []
    shutil.rmtree(root / rows[0]["path"])
    assert cat.intact(receipts.rows()) == [rows[1]]  # the other must be made again
    for _ in range(2):
        receipts.clear([row["shard_id"] for row in rows])
        assert receipts.rows() == []


def test_a_damaged_receipt_is_named(cat, root):
    row = add_shard(root, 1)
    cat.receipts("job1").write(row)
    path = root / f"receipts/job1/{row['shard_id']}.json"
    for text in ('{"path": "../../x"}', "", "[]", path.read_text()[:-9], json.dumps({**row, "shard_id": "other"})):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"receipts/job1/{path.name}: not a receipt .* delete it"):
            cat.receipts("job1").rows()


def test_jobs_that_share_a_recipe_keep_each_others_progress(cat, root):
    """Two commands with one recipe and different scenes at the same time; the first to finish commits."""
    first, second = [add_shard(root, 1), add_shard(root, 2)], [add_shard(root, 3), add_shard(root, 4)]
    receipts = cat.receipts("job")
    for row in (second[0], *first):
        receipts.write(row)
    commit(cat, *first)
    receipts.clear([row["shard_id"] for row in first])
    assert receipts.rows() == [second[0]]


def test_a_receipt_that_goes_while_it_is_read_was_committed(cat, root, monkeypatch):
    rows = [add_shard(root, 1), add_shard(root, 2)]
    for row in rows:
        cat.receipts("job").write(row)
    plain = type(cat.store).walk

    def walk(self, folder):
        files = list(plain(self, folder))
        for file in files[:1]:
            os.unlink(root / file.path)
        return iter(files)

    monkeypatch.setattr(type(cat.store), "walk", walk)
    assert len(cat.receipts("job").rows()) == 1


def test_a_job_that_continues_is_young_again(cat, root):
    for seed in (1, 2):
        cat.receipts("job").write(add_shard(root, seed))
    rows = cat.receipts("job").rows()
    make_old(root / "receipts", 30)
    assert cat.gc(dry_run=True) == ["receipts/job"]
    cat.receipts("job").renew()
    assert cat.gc() == [] and cat.receipts("job").rows() == rows
    cat.receipts("none").renew()
    assert cat.receipts("none").rows() == []
