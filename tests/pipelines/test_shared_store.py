"""Jobs that share a store: each keeps what others have done, and tells what it would revert."""

from dataclasses import replace

import pytest
from conftest import content, make_old

from catalog import Catalog, StaleRows
from pipelines.runner import Job, Made, PlannedShard, run


def nothing() -> None:
    pass


def plan(store, scenes, meanwhile=nothing, n_sweeps: int = 9) -> Job:
    """A job that makes one shard of random labels per scene, and lets something happen after the first."""

    def make(loaded, shards):
        for shard in shards:
            seed = int(shard.scene.removeprefix("scene"))
            yield Made(shard.shard_id, content(seed, n_sweeps=(n_sweeps,) * 4), {"n_points": 1.0})
            if shard.scene == f"scene{scenes[0]}":
                meanwhile()

    shards = [PlannedShard(f"id{k}.{n_sweeps}", f"scene{k}", "CAM_FRONT", 4, 10_000) for k in scenes]
    return Job("test", str(store), {"n_sweeps": n_sweeps}, {}, shards, lambda scene: None, make)


def killed() -> None:
    raise KeyboardInterrupt


def test_jobs_with_one_recipe_and_other_scenes_keep_each_others_progress(tmp_path):
    """While the first is at work, the second makes other scenes and commits; then the first dies and is continued."""
    store = tmp_path / "s"

    def second_job_then_death() -> None:
        assert run(plan(store, [5, 6]), workers=0).version == 1
        killed()

    with pytest.raises(KeyboardInterrupt):
        run(plan(store, [1, 2, 3], second_job_then_death), workers=0)
    assert len(list(store.glob("receipts/*/*.json"))) == 1
    report = run(plan(store, [2, 1]), workers=0)  # another selection
    assert (report.shards_done_before, report.shards_made, report.version) == (1, 1, 2)
    report = run(plan(store, [1, 2, 3, 5, 6]), workers=0)
    assert (report.shards_done_before, report.shards_made, report.version) == (4, 1, 3)
    assert not list(store.glob("receipts/*/*.json"))


def test_a_job_does_not_revert_labels_that_were_committed_since_it_started(tmp_path):
    store = tmp_path / "s"
    run(plan(store, [1, 2]), workers=0)
    other = plan(store, [2], n_sweeps=5)
    mine = plan(store, [1, 2], lambda: run(other, workers=0), n_sweeps=3)
    with pytest.raises(StaleRows, match=r"scene2 CAM_FRONT; .*run it again"):
        run(mine, workers=0)
    catalog = Catalog(store)
    assert [row["n_sweeps_min"] for row in catalog.version("latest").rows()] == [9, 5]
    report = run(mine, workers=0)  # knowing them now
    assert (report.shards_done_before, report.shards_made, report.version) == (2, 0, 3)
    assert [row["n_sweeps_min"] for row in catalog.version("latest").rows()] == [3, 3]


def test_a_job_keeps_figures_that_others_measured_while_it_was_at_work(tmp_path):
    """Another run of the same job was faster, and its labels have been evaluated."""
    store = tmp_path / "s"

    def measure() -> None:
        run(plan(store, [1, 2]), workers=0)
        catalog = Catalog(store)
        rows = [row | {"quality": row["quality"] | {"mae_m": 0.5}} for row in catalog.version(1).rows()]
        catalog.commit(rows, operation="evaluate", recipe={}, inputs={})

    report = run(plan(store, [1, 2], measure), workers=0)
    assert report.version == 2
    assert [row["quality"]["mae_m"] for row in Catalog(store).version(2).rows()] == [0.5, 0.5]


def test_gc_just_before_a_stopped_job_continues(tmp_path):
    """A day later; it has not written a receipt of its own yet."""
    store = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        run(plan(store, [1, 2], killed), workers=0)
    make_old(store, 30)
    deleted = []
    job = replace(plan(store, [1, 2]), load=lambda scene: deleted.extend(Catalog(store).gc() + Catalog(store).gc()))
    report = run(job, workers=0)
    assert (report.shards_done_before, report.shards_made, deleted) == (1, 1, [])
    assert Catalog(store).verify("latest") == []


def test_a_dry_run_finds_what_a_bucket_has(tmp_path):
    store = f"memory://{tmp_path.name}"
    assert run(plan(store, [1, 2]), workers=0, dry_run=True).shards_done_before == 0
    run(plan(store, [1, 2]), workers=0)
    assert run(plan(store, [1, 2, 3]), workers=0, dry_run=True).shards_done_before == 2
