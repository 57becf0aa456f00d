"""The tables of a nuScenes database."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dense_depth.geometry import SE3, quaternion_from_rotation

NAMES = ["category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log"]
NAMES += ["scene", "sample", "sample_data", "sample_annotation", "map"]

Row = dict[str, Any]


class Tables:
    """The thirteen tables of a nuScenes database, as lists of rows."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, list[Row]] = {name: [] for name in NAMES}

    def token(self, table: str, *key: object) -> str:
        """The token of a row: 32 hex digits that depend on the seed and on what the row is about, nothing else."""
        return hashlib.blake2b(repr((self.seed, table, *key)).encode(), digest_size=16).hexdigest()

    def add(self, table: str, *key: object, **fields: Any) -> Row:
        """Appends a row and returns it; ``key`` says what it is about."""
        self.rows[table].append({"token": self.token(table, *key), **fields})
        return self.rows[table][-1]

    def write(self, folder: Path) -> None:
        """Writes one JSON file per table into a new folder, and ``splits.json``: a quarter of the scenes is for val."""
        names = [row["name"] for row in self.rows["scene"]]
        n_val = max(1, len(names) // 4) if len(names) > 1 else 0
        train, val = names[: len(names) - n_val], names[len(names) - n_val :]
        # The devkit takes "train" and "val" for its own lists of scenes, so its evaluation needs other names.
        splits = {"train": train, "val": val, "synth_train": train, "synth_val": val}
        folder.mkdir()
        for name, rows in {"splits": splits, **self.rows}.items():
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))


def chain(rows: list[Row]) -> None:
    """Links rows that follow each other in time by ``prev`` and ``next``."""
    tokens = ["", *(row["token"] for row in rows), ""]
    for row, before, after in zip(rows, tokens, tokens[2:]):
        row["prev"], row["next"] = before, after


def pose_fields(dst_SE3_src: SE3) -> Row:
    """A transform as the tables store it."""
    rotation = quaternion_from_rotation(dst_SE3_src[:3, :3])
    return {"translation": dst_SE3_src[:3, 3].tolist(), "rotation": rotation.tolist()}
