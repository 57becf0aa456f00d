"""Versions, tags, receipts and garbage: what is committed stays, under concurrent writers and injected faults."""

import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import add_shard, assert_label, commit, content, paths

import catalog.catalog
from catalog import Catalog, CommitConflict
from dense_depth import InputError
from dense_depth.shards import CorruptShardError
from dense_depth.store import open_store

# ---- opening


def test_create_and_open(tmp_path):
    store = tmp_path / "new/store"
    with pytest.raises(InputError, match=r"not a label store .*create one with pipelines/accumulate.py --store"):
        Catalog(store)
    assert not store.exists()
    Catalog.create(store)
    before = paths(store)
    Catalog.create(store)
    assert paths(store) == before
    assert json.loads((store / "store.json").read_text()) == {"format": "dense-depth label store", "format_version": 2}
    assert Catalog(store).versions() == []
    with pytest.raises(InputError, match="no version 'latest'"):
        Catalog(store).version("latest")


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"not empty.*thesis\.tex"):
        Catalog.create(tmp_path)
    with pytest.raises(InputError, match="not a label store"):
        Catalog(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    other = tmp_path / "other"
    Catalog.create(other)
    for version in (1, 3):
        (other / "store.json").write_text(f'{{"format": "dense-depth label store", "format_version": {version}}}')
        with pytest.raises(
            InputError, match=rf"'format_version': {version}.*make the labels again, into a new --store"
        ):
            Catalog(other)


# ---- committing


def test_commit_and_read(cat, root):
    labels = content(1)
    version = commit(cat, add_shard(root, 1), add_shard(root, 2, camera="CAM_BACK"))
    assert (version.number, version.parent, version.operation) == (1, None, "test")
    for t, token in enumerate(labels.sample_tokens):
        assert_label(version.read(token, "CAM_FRONT"), labels, t)
    with pytest.raises(InputError, match="no label fits sample nope"):
        version.read("nope", "CAM_FRONT")
    with pytest.raises(InputError, match="no label fits"):
        version.read("sample1-0", "CAM_BACK")
    row = next(row for row in version.rows() if row["scene_token"] == "scene1")
    depth_m = np.stack([label.depth_m for label in labels.labels])
    assert row["valid_fraction"] == (depth_m > 0).mean()
    assert (row["depth_min_m"], row["depth_max_m"]) == (depth_m[depth_m > 0].min(), depth_m.max())
    assert (row["n_sweeps_min"], row["n_frames"], row["height"], row["width"]) == (6, 4, 24, 32)
    assert row["quality"]["n_points"] == 12 and row["quality"]["dropped_ego"] is None
    assert cat.verify("latest") == []
    assert_label(pickle.loads(pickle.dumps(version)).read("sample1-2", "CAM_FRONT"), labels, 2)


def test_kinds_of_one_frame(cat, root):
    version = commit(cat, add_shard(root, 1), add_shard(root, 1, kind="lidar", labels=content(1, fraction=0).labels))
    with pytest.raises(InputError, match=r"several labels fit .*accumulated \(synthetic\), lidar \(synthetic\)"):
        version.read("sample1-0", "CAM_FRONT")
    assert version.read("sample1-0", "CAM_FRONT", "lidar").depth_m.max() == 0
    assert version.read("sample1-0", "CAM_FRONT", "accumulated").depth_m.max() > 0
    lidar = next(row for row in version.rows() if row["kind"] == "lidar")
    assert (lidar["valid_fraction"], lidar["depth_min_m"], lidar["depth_max_m"]) == (0, None, None)


def test_rows_replace_rows_with_their_key(cat, root):
    one, two = add_shard(root, 1), add_shard(root, 2)
    commit(cat, one, two)
    changed = add_shard(root, 1, n_sweeps=(1, 1, 1, 1))
    added = add_shard(root, 3)
    second = commit(cat, changed, added)
    assert [row["path"] for row in second.rows()] == [changed["path"], two["path"], added["path"]]
    diff = cat.diff(1, 2)
    assert [row["path"] for row in diff.added] == [added["path"]]
    assert [(old["path"], new["path"]) for old, new in diff.changed] == [(one["path"], changed["path"])]
    assert diff.removed == []
    assert [row["path"] for row in cat.diff(2, 1).removed] == [added["path"]]
    assert [row["path"] for row in cat.version(1).rows()] == [one["path"], two["path"]]  # the old version stays


def test_figures_of_the_same_labels_are_no_change_of_labels(cat, root):
    one, two, three = (add_shard(root, seed) for seed in (1, 2, 3))
    commit(cat, one, two, three)
    measured = one | {"quality": one["quality"] | {"mae_m": 0.1}}
    other_labels = add_shard(root, 2, n_sweeps=(1, 1, 1, 1))
    other_labels["quality"] |= {"mae_m": 0.1}
    other_origin = three | {"source_shards": [one["path"]]}
    commit(cat, measured, other_labels, other_origin)
    diff = cat.diff(1, 2)
    assert diff.measured == [(one, measured)]
    assert diff.changed == [(two, other_labels), (three, other_origin)]
    assert (diff.added, diff.removed) == ([], [])


def test_same_command_twice_commits_nothing(cat, root):
    version = commit(cat, add_shard(root, 1), add_shard(root, 2))
    before = paths(root)
    assert commit(cat, add_shard(root, 2)).number == 1
    assert commit(cat, add_shard(root, 2), add_shard(root, 1)).commit_id == version.commit_id
    assert paths(root) == before


def test_manifest_depends_on_content_alone(tmp_path):
    stores = [Catalog.create(tmp_path / name) for name in "ab"]
    for cat, seeds in zip(stores, ([1, 2, 3], [3, 1, 2])):
        for seed in seeds[:1]:
            commit(cat, add_shard(cat.store.url, seed))
        commit(cat, *(add_shard(cat.store.url, seed) for seed in seeds))
    assert stores[0].version("latest").manifest == stores[1].version("latest").manifest
    assert [v.number for v in stores[0].versions()] == [1, 2]


def test_copied_store(cat, root, tmp_path):
    commit(cat, add_shard(root, 1))
    cat.tag("main", 1)
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(root)
    copy = Catalog(tmp_path / "copy")
    assert_label(copy.version("main").read("sample1-3", "CAM_FRONT"), content(1), 3)
    assert copy.verify("main") == []
    assert not any(str(root.parent).encode() in data for data in paths(tmp_path / "copy").values())


def test_bucket(tmp_path):
    url = f"memory://{tmp_path.name}"
    cat = Catalog.create(url)
    assert commit(cat, add_shard(url, 1)).number == 1
    assert commit(cat, add_shard(url, 2)).number == 2
    cat.tag("main", 2)
    assert_label(Catalog(url).version("main").read("sample1-0", "CAM_FRONT"), content(1), 0)
    orphan = add_shard(url, 3)
    assert (cat.verify("main"), cat.gc(older_than_s=-60)) == ([], [orphan["path"]])
    assert cat.verify("main") == []


def test_bad_rows_commit_nothing(cat, root):
    good = add_shard(root, 1)
    for change in (
        {"path": "../../etc/passwd"},
        {"path": "/etc/passwd"},
        {"path": f"shards/../shards/accumulated/{'0' * 16}.zarr"},
        {"path": good["path"].replace("accumulated", "lidar")},
        {"kind": "../x"},
        {"scene_token": "a/b"},
        {"camera": ""},
        {"sample_tokens": ["a", "a", "b", "c"]},
        {"n_frames": 5},
        {"bytes": 1},
        {"sha256": "0" * 64},
        {"files": [{**good["files"][0], "path": "../../x"}, *good["files"][1:]]},
        {"shard_id": "../x"},
        {"source_shards": ["../x"]},
        {"quality": {"invented": 1.0}},
        {"quality": {"n_points": float("nan")}},
        {"surprise": 1},
        {"recipe_hash": "x"},
    ):
        with pytest.raises(InputError, match=r"^row "):  # refused for what it says, not for what is on disk
            commit(cat, {**good, **change})
    with pytest.raises(InputError, match="two rows"):
        commit(cat, good, good)
    shutil.rmtree(root / good["path"])
    with pytest.raises(InputError, match="nothing committed"):
        commit(cat, good)
    assert cat.versions() == []
    assert not (root / "manifests").exists()


# ---- concurrent commits and lost answers


def committer(store: str, barrier, worker: int, rounds: int) -> None:
    cat = Catalog(store)
    for number in range(rounds):
        row = add_shard(store, 100 * worker + number)
        barrier.wait(60)
        commit(cat, row)


def test_concurrent_commits_lose_nothing(cat, root):
    context = multiprocessing.get_context("spawn")
    workers, rounds = 4, 5
    barrier = context.Barrier(workers)
    processes = [
        context.Process(target=committer, args=(str(root), barrier, worker, rounds)) for worker in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * workers
    versions = cat.versions()
    assert [version.number for version in versions] == list(range(1, workers * rounds + 1))
    scenes: set[str] = set()
    for version in versions:  # each adds exactly one row to the one before
        now = set(version.table["scene_token"].to_pylist())
        assert len(now) == len(scenes) + 1 and now > scenes
        scenes = now
    assert scenes == {f"scene{100 * worker + number}" for worker in range(workers) for number in range(rounds)}
    assert cat.verify("latest") == []
    assert os.listdir(root / "staging") == []


@pytest.mark.parametrize("answer", ["error", "exists"])
def test_commit_that_landed_but_was_reported_failed(cat, root, monkeypatch, answer):
    """A request that times out after it worked, or that the client repeats and then finds its own object."""
    plain = type(cat.store).put_if_absent

    def lossy(self, path, data):
        assert plain(self, path, data)
        if answer == "error":
            raise TimeoutError("no answer")
        return False

    rows = add_shard(root, 1), add_shard(root, 2)
    with monkeypatch.context() as patch:
        patch.setattr(type(cat.store), "put_if_absent", lossy)
        assert commit(cat, *rows).number == 1
    assert len(cat.versions()) == 1
    assert cat.version(1).table.num_rows == 2


def test_commit_that_failed_is_an_error(cat, root, monkeypatch):
    row = add_shard(root, 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(cat.store), "put_if_absent", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer")))
        with pytest.raises(TimeoutError):
            commit(cat, row)
    assert cat.versions() == []
    assert commit(cat, row).number == 1


def test_tries_are_bounded(cat, root, monkeypatch):
    row, tries = add_shard(root, 1), []
    monkeypatch.setattr(type(cat.store), "put_if_absent", lambda *_: tries.append(1))
    monkeypatch.setattr(catalog.catalog.time, "sleep", lambda seconds: None)
    with pytest.raises(CommitConflict):
        commit(cat, row)
    assert len(tries) == catalog.catalog.COMMIT_TRIES
    assert cat.versions() == []


KILL_SCRIPT = """
import sys
from catalog import Catalog
from conftest import add_shard, commit, run_with_deaths
root = sys.argv[1]
rows = {}
def prepare(step):
    cat = Catalog.create(f"{root}/{step}")
    rows[step] = [add_shard(f"{root}/{step}", seed) for seed in (1, 2)]
    commit(cat, rows[step][0])
def work(step):
    commit(Catalog(f"{root}/{step}"), rows[step][1])
def check(step):
    cat = Catalog(f"{root}/{step}")
    assert cat.version("latest").number in (1, 2)
    assert cat.verify("latest") == [] == cat.verify(1)
print(run_with_deaths(prepare, work, check))
"""


def test_killed_committer(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILL_SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 15
    manifests = set()
    for step in range(1, steps + 1):
        cat = Catalog(tmp_path / str(step))
        version = commit(cat, add_shard(tmp_path / str(step), 2))  # the rerun
        assert version.number == 2
        manifests.add(version.manifest)
        for path in cat.gc(older_than_s=-60):
            assert path.startswith("staging/") or path == f"manifests/{version.manifest}.parquet"
        assert cat.verify(2) == []
    assert len(manifests) == 1


def test_full_disk_commits_nothing(cat, root):
    """The kernel refuses to let a file grow, as a full disk does."""
    commit(cat, add_shard(root, 1))
    before = paths(root)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            cat.commit([{**before_row, "n_sweeps_min": 1} for before_row in cat.version(1).rows()],
                       operation="x", recipe={}, inputs={})  # fmt: skip
        except OSError:
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert paths(root) == before
    assert cat.verify("latest") == []


# ---- tampering


def test_tampered_manifest(cat, root):
    commit(cat, add_shard(root, 1), add_shard(root, 2))
    path = root / f"manifests/{cat.version(1).manifest}.parquet"
    original = path.read_bytes()
    fewer = pq.read_table(path).slice(0, 1)
    for damage in ("flip", "cut", "row", "gone"):
        path.write_bytes(original)
        if damage == "flip":
            path.write_bytes(original[:100] + bytes([original[100] ^ 4]) + original[101:])
        elif damage == "cut":
            path.write_bytes(original[:-10])
        elif damage == "row":
            pq.write_table(fewer, path)
        else:
            path.unlink()
        with pytest.raises(InputError, match=path.name):
            cat.version(1)
        assert any(path.name in problem for problem in cat.verify(1))
    path.write_bytes(original)
    assert cat.verify(1) == []


def test_tampered_version_record(cat, root):
    for seed in (1, 2, 3):
        commit(cat, add_shard(root, seed))
    path = root / "versions/000003.json"
    original = path.read_text()
    body = json.loads(original)
    edits = [{**body, name: value} for name, value in {
        "manifest": cat.version(1).manifest,  # an older manifest put back
        "operation": "other", "parent": 1, "version": 4, "sha256": "0" * 64, "surprise": 1,
    }.items()]  # fmt: skip
    texts = [json.dumps(edit) for edit in edits] + [original[:-20], "", "[]", "null"]
    texts += [json.dumps({k: v for k, v in body.items() if k != name}) for name in body]
    for text in texts:
        path.write_text(text)
        with pytest.raises(InputError, match=r"versions/000003\.json"):
            cat.version(3)
        assert any("versions/000003.json" in problem for problem in cat.verify("latest"))
    path.write_text(original)
    assert cat.verify(3) == []
    (root / "versions/000001.json").unlink()
    assert cat.version(3).number == 3
    assert any("versions/000001.json" in problem for problem in cat.verify(3))
    with pytest.raises(InputError, match=r"versions/000001\.json: missing"):
        cat.version(2)


def test_forged_parent(cat, root):
    """A record that is consistent in itself, put in the place of the one that version 2 was made from."""
    commit(cat, add_shard(root, 1))
    commit(cat, add_shard(root, 2))
    other = Catalog.create(root.parent / "other")
    commit(other, add_shard(other.store.url, 9))
    shutil.copy(root.parent / "other/versions/000001.json", root / "versions/000001.json")
    with pytest.raises(InputError, match=r"versions/000001\.json: changed"):
        cat.version(2)


def test_damaged_shards(cat, root):
    row, other = add_shard(root, 1), add_shard(root, 2)
    version = commit(cat, row, other)
    data = root / row["path"] / "depth_step/c/0/0"
    original = data.read_bytes()
    data.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert [row["path"] in problem for problem in cat.verify(1)] == [True]
    with pytest.raises(CorruptShardError, match=row["path"]):
        version.read("sample1-0", "CAM_FRONT")
    data.unlink()
    (root / other["path"] / "zarr.json").write_bytes(b"")
    problems = cat.verify(1)
    assert len(problems) == 2 and "missing" in problems[0] + problems[1]
    for token in ("sample1-0", "sample2-0"):
        with pytest.raises(CorruptShardError):
            cat.version(1).read(token, "CAM_FRONT")


# ---- refs and tags


def test_refs_and_tags(cat, root):
    commit(cat, add_shard(root, 1))
    commit(cat, add_shard(root, 2))
    cat.tag("main", 1)
    cat.tag("v1.0-mini_x", 2)
    assert [cat.version(ref).number for ref in ("main", "v1.0-mini_x", 1, "1", "000001", "latest")] == [
        1,
        2,
        1,
        1,
        1,
        2,
    ]
    cat.tag("main", 2)
    assert cat.tags() == {"main": 2, "v1.0-mini_x": 2}
    assert (root / "tags/main").read_text() == "2\n"
    cat.tag("main", 2, move=False)
    with pytest.raises(InputError, match="not to be moved"):
        cat.tag("main", 1, move=False)
    with pytest.raises(InputError, match="no version '9'"):
        cat.tag("main", 9)
    before = paths(root.parent)
    for name in ("", ".hidden", "../evil", "a/b", "/etc/x", "a\0b", "x" * 129, "7", "000007", "latest", "a b", "tag\n"):
        with pytest.raises(InputError, match="tag "):
            cat.tag(name, 1)
    for ref in ("nope", "../versions/000001.json", "3", 0, -1, "", "\0", "x" * 5000, "१"):
        with pytest.raises(InputError, match=re.escape(repr(str(ref))) + r".*main -> 2"):
            cat.version(ref)
    for job in ("../x", "", "a/b", ".."):
        with pytest.raises(InputError, match="receipt"):
            cat.receipts(job)
    for shard_id in ("../x", "", "a/b", ".."):
        with pytest.raises(InputError, match="receipt"):
            cat.receipts("job").clear([shard_id])
        with pytest.raises(InputError, match="row "):
            cat.receipts("job").write({**add_shard(root, 1), "shard_id": shard_id})
    assert paths(root.parent) == before
    (root / "tags/main").write_text("../../x")
    with pytest.raises(InputError, match="tags/main"):
        cat.version("main")


def test_put_if_absent_in_a_folder(root):
    place = open_store(root)
    assert [place.put_if_absent("versions/x", b"1"), place.put_if_absent("versions/x", b"2")] == [True, False]
    assert place.get("versions/x") == b"1"
    with pytest.raises(InputError, match="leaves the store"):
        place.put("../x", b"1")


# ---- command line


def run(*arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(Path(catalog.__file__).parents[1])}
    command = [sys.executable, "-m", "catalog", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_command_line(cat, root):
    one = add_shard(root, 1)
    commit(cat, one, add_shard(root, 2))
    commit(cat, add_shard(root, 3))
    store = ("--store", str(root))
    done = run(*store, "tag", "main", "1")
    assert (done.returncode, done.stdout) == (0, "tag main names version 1\n")
    done = run(*store, "log")
    assert done.returncode == 0 and "main" in done.stdout and "UTC" in done.stdout
    done = run(*store, "show", "main")
    assert done.returncode == 0 and one["path"] in done.stdout and "2 shards, 8 labels" in done.stdout
    assert run(*store, "show").returncode == 0
    done = run(*store, "diff", "main", "latest")
    assert done.returncode == 0 and "1 shards added, 0 removed, 0 changed, 0 measured" in done.stdout
    done = run(*store, "verify", "main")
    assert (done.returncode, done.stdout) == (0, "main: 0 problems\n")
    done = run(*store, "gc", "--dry-run", "--older-than-h", "0")
    assert done.returncode == 0 and "0 would be deleted" in done.stdout
    data = [path for path in (root / one["path"]).rglob("*") if path.is_file() and path.name != "zarr.json"]
    for path in data:
        path.write_bytes(b"")
    done = run(*store, "verify", "main")
    assert done.returncode == 1 and done.stdout.count("0 bytes instead of") == len(data) > 0
    done = run(*store, "expire", "--keep-last", "1", "--dry-run")
    assert (done.returncode, done.stdout) == (0, "0 would expire\n")  # one is tagged, one the last
    run(*store, "tag", "main", "2")
    done = run(*store, "expire", "--keep-last", "1")
    assert done.returncode == 0 and done.stdout.startswith("version 1\n1 expired")
    assert "1 more have expired" in run(*store, "log").stdout
    wrong = (
        (*store, "show", "nope"),
        (*store, "show", "1"),
        ("--store", str(root / "nope"), "log"),
        (*store, "tag", "7", "2"),
        (*store, "expire", "--keep-last", "0"),
        (*store, "expire", "--older-than-days", "nan"),
        (*store, "gc", "--older-than-h", "-1"),
    )
    for arguments in wrong:
        done = run(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert run("log").returncode == 2


def test_help_is_quick():
    """It loads nothing that takes long; a machine at work makes the time itself say little."""
    assert run("--help").returncode == 0
    code = (
        "import sys, catalog.__main__; print(sorted({'zarr', 'pyarrow', 'obstore', 'rich.table'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(catalog.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "zarr" not in done.stdout and "pyarrow" not in done.stdout
