"""Versions of a label store.

from catalog import Catalog
label = Catalog("store").version("main").read(sample_token, "CAM_FRONT")
"""

from catalog.log import Catalog, CommitConflict, Diff, Version

__all__ = ["Catalog", "CommitConflict", "Diff", "Version"]
