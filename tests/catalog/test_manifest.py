"""The table of a version: old programs' tables, and no threads."""

import subprocess
import sys

import pytest
from conftest import RECIPE, add_shard, commit

from catalog import Catalog, manifest
from dense_depth import InputError


def test_a_manifest_of_an_older_program_lacks_the_newest_figures(tmp_path, monkeypatch):
    """It can be read and added to; one with a column nobody knows is refused."""
    cat = Catalog.create(tmp_path / "s")
    with monkeypatch.context() as older:
        older.setattr(manifest, "QUALITY", manifest.QUALITY[:4])
        manifest.schema.cache_clear()
        row = add_shard(cat.store, 1)
        row["quality"] = dict.fromkeys(manifest.QUALITY) | {"n_points": 7.0}
        cat.commit([row], operation="accumulate", recipe=RECIPE, inputs={})
    manifest.schema.cache_clear()
    (read,) = Catalog(tmp_path / "s").version(1).rows()
    assert read["quality"] == dict.fromkeys(manifest.QUALITY) | {"n_points": 7.0}
    assert len(cat.commit([add_shard(cat.store, 2)], operation="accumulate", recipe=RECIPE, inputs={}).rows()) == 2
    with monkeypatch.context() as older:
        older.setattr(manifest, "QUALITY", manifest.QUALITY[:4])
        manifest.schema.cache_clear()
        with pytest.raises(InputError, match="newer program"):
            Catalog(tmp_path / "s").version(2)
    manifest.schema.cache_clear()


def test_a_manifest_is_read_and_written_without_threads(cat, root):
    """Arrow's own threads now and then abort the process as it ends."""
    commit(cat, add_shard(root, 1), add_shard(root, 2))
    code = (
        "import os, sys, pyarrow.parquet\n"
        "from catalog import Catalog, manifest\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "cat, before = Catalog(sys.argv[1]), count()\n"
        "version = cat.version(1)\n"
        "assert len(version.rows()) == 2 and manifest.to_bytes(manifest.merge(version.table, version.rows()))\n"
        "print(count() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
