"""What gc deletes and what it must keep; versions that expire."""

import json
import threading

import pytest
from conftest import add_shard, assert_label, commit, content, make_old, paths

from catalog import Catalog, garbage
from catalog.manifest import Row
from dense_depth import InputError
from dense_depth.shards import CorruptShardError


def add_receipt(cat, job: str, seed: int) -> Row:
    row = add_shard(cat.store, seed)
    cat.receipts(job).write(row)
    return row


def test_gc(cat, root):
    old = add_shard(root, 1)
    commit(cat, old)
    commit(cat, add_shard(root, 1, n_sweeps=(1, 1, 1, 1)))  # the first shard is needed by version 1 only
    running, stopped, orphan = add_receipt(cat, "running", 2), add_receipt(cat, "stopped", 3), add_shard(root, 4)
    (root / "staging/dead/new").mkdir(parents=True)
    (root / "staging/dead/new/zarr.json").write_text("{")
    (root / "manifests/notes.txt").write_text("x")
    make_old(root, 30)
    second = add_receipt(cat, "running", 5)  # the job lives: its first, old receipt counts
    young = add_shard(root, 6)
    before = paths(root)
    expected = {orphan["path"], "receipts/stopped", "staging/dead", "manifests/notes.txt"}
    assert set(cat.gc(dry_run=True)) == expected
    assert paths(root) == before
    assert cat.gc(older_than_s=40 * 3600) == []
    assert set(cat.gc()) == expected
    kept = paths(root)
    assert before.keys() - kept.keys() == {p for p in before if p.startswith(tuple(expected))}
    assert cat.gc() == [stopped["path"]]  # now that no receipt names it
    assert (cat.verify(1), cat.verify(2)) == ([], [])
    assert (root / young["path"]).is_dir()
    assert sorted(row["path"] for row in cat.receipts("running").rows()) == sorted([running["path"], second["path"]])
    assert cat.gc() == []
    assert add_shard(root, 4) == orphan and commit(cat, orphan).number == 3


def test_gc_spares_a_shard_made_again(cat, root):
    row = add_shard(root, 1)
    make_old(root, 30)
    assert cat.gc(dry_run=True) == [row["path"]]
    add_shard(root, 1)  # kept as it is, but in use
    assert cat.gc() == []


def test_gc_does_not_follow_links(cat, root, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("x")
    (root / "shards/accumulated").mkdir(parents=True)
    (root / f"shards/accumulated/{'a' * 16}.zarr").symlink_to(tmp_path / "precious")
    (root / "staging/link").symlink_to(tmp_path / "precious")
    cat.gc(older_than_s=-60)
    assert (tmp_path / "precious/file").read_text() == "x"


def test_gc_refuses_a_store_it_cannot_read(cat, root):
    commit(cat, add_shard(root, 1))
    (root / "versions/000001.json").write_text("{}")
    before = paths(root)
    with pytest.raises(InputError):
        cat.gc(older_than_s=-60)
    assert paths(root) == before


def test_gc_refuses_a_receipt_it_cannot_read(cat, root):
    """It may name a shard that is needed."""
    add_receipt(cat, "job", 1)
    (root / "receipts/job/torn.json").write_text("{")
    make_old(root, 30)
    before = paths(root)
    with pytest.raises(InputError, match=r"receipts/job/torn\.json: not a receipt"):
        cat.gc()
    assert paths(root) == before


# ---- gc while a job commits


def before_publishing(cat, monkeypatch, act) -> None:
    """Has something happen between a commit's check of the shards and its publication."""
    plain = type(cat.store).put_if_absent

    def put_if_absent(self, path, data):
        if path.startswith("versions/"):
            monkeypatch.setattr(type(cat.store), "put_if_absent", plain)
            act()
        return plain(self, path, data)

    monkeypatch.setattr(type(cat.store), "put_if_absent", put_if_absent)


def test_gc_spares_the_shards_of_a_job_that_stopped_a_day_ago_and_commits_now(cat, root, monkeypatch):
    rows = [add_receipt(cat, "job", seed) for seed in (1, 2)]
    make_old(root, 30)
    deleted = []
    before_publishing(cat, monkeypatch, lambda: deleted.extend(cat.gc()))
    commit(cat, *rows)
    assert deleted == ["receipts/job"]
    assert cat.verify("latest") == [] and cat.gc() == []


def test_gc_between_the_commit_of_a_job_and_the_end_of_its_receipts(cat, root, monkeypatch):
    """Receipts are read before versions: a job that commits in between is seen in one of them."""
    rows = [add_receipt(cat, "job", seed) for seed in (1, 2)]
    make_old(root / "shards", 30)
    plain = garbage.live_numbers

    def live_numbers(store):
        if not plain(store):
            commit(cat, *rows)
            cat.receipts("job").clear([row["shard_id"] for row in rows])
        return plain(store)

    monkeypatch.setattr(garbage, "live_numbers", live_numbers)
    assert cat.gc() == []
    assert cat.verify("latest") == []


def test_a_shard_that_vanishes_during_a_commit_is_told_and_repaired(cat, root, monkeypatch):
    row = add_shard(root, 1)
    make_old(root, 30)  # no receipt names it
    before_publishing(cat, monkeypatch, cat.gc)
    with pytest.raises(CorruptShardError, match=rf"version 1 was committed, but .*{row['path']}.*the same command"):
        commit(cat, row)
    assert len(cat.verify("latest")) == len(row["files"])
    assert commit(cat, add_shard(root, 1)).number == 1
    assert cat.verify("latest") == []


def test_a_manifest_that_vanishes_during_a_commit_is_written_again(cat, root, monkeypatch):
    """The same bytes as an old manifest that nothing needed."""
    row = add_shard(root, 1)
    before_publishing(cat, monkeypatch, lambda: [path.unlink() for path in (root / "manifests").iterdir()])
    assert commit(cat, row).rows() == [row]
    assert cat.verify("latest") == []


# ---- expire


def commit_often(cat, n: int) -> list[Row]:
    """Versions 1 to n, each with new labels of one scene; returns the rows."""
    rows = [add_shard(cat.store, 1, n_sweeps=(k, k, k, k)) for k in range(1, n + 1)]
    for row in rows:
        commit(cat, row)
    return rows


def numbers(cat) -> list[int]:
    return [v.number for v in cat.versions()]


def test_expire_keeps_tags_and_the_last_and_gc_frees_the_rest(cat, root):
    rows = commit_often(cat, 6)
    commit(cat, rows[0] | {"quality": rows[0]["quality"] | {"mae_m": 1.0}})  # version 7 has the labels of version 1
    cat.tag("main", 3)
    records = {name: data for name, data in paths(root).items() if name.startswith("versions/")}
    before = paths(root)
    assert cat.expire(keep_last=2, dry_run=True) == [1, 2, 4, 5]
    assert paths(root) == before
    assert cat.expire(keep_last=2) == [1, 2, 4, 5]
    assert numbers(cat) == [3, 6, 7] and [v.number for v in cat.versions(expired=True)] == [1, 2, 3, 4, 5, 6, 7]
    make_old(root, 30)
    manifests = [f"manifests/{cat.versions(expired=True)[number - 1].manifest}.parquet" for number in (1, 2, 4, 5)]
    assert sorted(cat.gc()) == sorted([rows[k]["path"] for k in (1, 3, 4)] + manifests)  # not the first's
    assert [cat.verify(ref) for ref in ("main", 6, 7)] == [[], [], []]
    for ref in ("main", 6, 7):
        assert_label(cat.version(ref).read("sample1-0", "CAM_FRONT"), content(1), 0)
    assert cat.expire(keep_last=2) == cat.gc() == []
    assert {name: data for name, data in paths(root).items() if name.startswith("versions/")} == records
    assert commit(cat, add_shard(root, 2)).number == 8 and cat.verify("latest") == []


def test_expire_by_age(cat, root, monkeypatch):
    for days in (3, 2, 1):
        with monkeypatch.context() as patch:
            now = 1_700_000_000_000_000_000 - days * 86_400_000_000_000
            patch.setattr("catalog.catalog.time.time_ns", lambda now=now: now)
            commit(cat, add_shard(root, days))
    monkeypatch.setattr("catalog.garbage.time.time_ns", lambda: 1_700_000_000_000_000_000)
    assert cat.expire(keep_last=1, older_than_s=3 * 86_400 + 1) == []
    assert cat.expire(keep_last=1, older_than_s=2.5 * 86_400) == [1]
    assert cat.expire(keep_last=1) == [2]
    with pytest.raises(InputError, match="one or more"):
        cat.expire(keep_last=0)
    assert numbers(cat) == [3]


def test_an_expired_version_is_refused_by_name(cat, root):
    commit_often(cat, 3)
    cat.expire(keep_last=1)
    for ref in (1, "2"):
        with pytest.raises(InputError, match=f"version '{ref}' has expired"):
            cat.version(ref)
    with pytest.raises(InputError, match="has expired"):
        cat.tag("main", 1)
    with pytest.raises(InputError, match="has expired"):
        cat.diff(1, 3)
    assert cat.tags() == {} and cat.version("latest").number == 3


def test_a_record_that_is_missing_is_an_error_though_it_expired(cat, root):
    """The chain of records holds, whatever became of the labels."""
    commit_often(cat, 4)
    cat.expire(keep_last=2)
    make_old(root, 30)
    cat.gc()
    assert cat.verify("latest") == []
    path = root / "versions/000002.json"
    original = path.read_text()
    for text in (None, json.dumps({**json.loads(original), "manifest": "0" * 64})):
        path.unlink() if text is None else path.write_text(text)
        assert all("versions/000002.json" in problem for problem in cat.verify("latest"))
        assert len(cat.verify("latest")) == 2  # of itself, and as the parent of the third
        with pytest.raises(InputError, match=r"versions/000002\.json"):
            cat.version(3)
        path.write_text(original)
    (root / "expired/000002.json").unlink()  # not expired: then its labels are missed
    assert any("missing" in problem for problem in cat.verify("latest"))


def test_a_slow_commit_does_not_take_the_number_of_a_version_that_expired(cat, root, monkeypatch):
    commit_often(cat, 2)

    def others() -> None:
        commit(cat, add_shard(root, 2))
        commit(cat, add_shard(root, 3))
        cat.expire(keep_last=1)
        make_old(root, 30)
        cat.gc()

    row = add_shard(root, 4)
    cat.receipts("job").write(row)
    before_publishing(cat, monkeypatch, others)
    assert commit(cat, row).number == 5
    assert {row["scene_token"] for row in cat.version(5).rows()} == {"scene1", "scene2", "scene3", "scene4"}
    assert numbers(cat) == [4, 5] and cat.verify("latest") == []


@pytest.mark.parametrize("when", ["before the mark", "after the mark"])
def test_a_version_that_is_tagged_while_it_expires(cat, root, monkeypatch, when):
    """Either the tag is refused or the version stays; a tag that was set names a version that is there."""
    commit_often(cat, 3)
    plain = type(cat.store).put_if_absent

    def put_if_absent(self, path, data):
        monkeypatch.setattr(type(cat.store), "put_if_absent", plain)
        if when == "before the mark":
            cat.tag("good", 1)
            return plain(self, path, data)
        done = plain(self, path, data)
        with pytest.raises(InputError, match="has expired"):
            cat.tag("good", 1)
        return done

    monkeypatch.setattr(type(cat.store), "put_if_absent", put_if_absent)
    expired = cat.expire(keep_last=1)
    if when == "before the mark":
        assert expired == [2] and cat.version("good").number == 1
    else:
        assert expired == [1, 2] and cat.tags() == {}


def test_commits_while_versions_expire_lose_nothing(cat, root):
    """Threads that commit, while another expires all it may."""
    rows = [[add_shard(root, 10 * worker + k) for k in range(5)] for worker in range(3)]
    commit(cat, add_shard(root, 99))
    stop, failures = threading.Event(), []

    def guarded(work) -> None:
        try:
            work()
        except Exception as error:
            failures.append(error)

    def expire() -> None:
        while not stop.is_set():
            Catalog(root).expire(keep_last=1)

    def work(mine) -> None:
        for row in mine:
            commit(Catalog(root), row)

    expirer = threading.Thread(target=guarded, args=[expire])
    workers = [threading.Thread(target=guarded, args=[lambda mine=mine: work(mine)]) for mine in rows]
    for thread in (expirer, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    expirer.join()
    assert failures == []
    assert cat.version("latest").number == 16 and len(cat.version("latest").rows()) == 16
    assert cat.verify("latest") == []
