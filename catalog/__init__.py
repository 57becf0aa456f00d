"""Versions of a label store.

from catalog import Catalog
label = Catalog("store").version("main").read(sample_token, "CAM_FRONT")
"""

from catalog.catalog import Catalog, Diff
from catalog.conflicts import CommitConflict, StaleRows
from catalog.version import Version

__all__ = ["Catalog", "CommitConflict", "Diff", "StaleRows", "Version"]
