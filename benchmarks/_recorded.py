"""Where the recorded data lies, for the benchmarks that need it."""

import os
import sys
from pathlib import Path

DRIVE = "2011_09_26_drive_0005_sync"


def kitti_raw() -> Path:
    """The KITTI raw folder; ends the benchmark where there is none."""
    return recorded("kitti_raw")


def recorded(folder: str) -> Path:
    """A folder of recorded data; ends the benchmark where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("DENSE_DEPTH_DATA", default)) / folder
    if not root.is_dir():
        print(f"skipped: no recorded data in {root}; set DENSE_DEPTH_DATA")
        sys.exit(0)
    return root


def pictures() -> Path:
    """Folder for the pictures that benchmarks draw; git ignores it."""
    folder = Path(__file__).parent / "pictures"
    folder.mkdir(exist_ok=True)
    return folder
