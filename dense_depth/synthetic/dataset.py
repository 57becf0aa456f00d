"""A generated dataset on disk: its scenes, and the tables they share."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from dense_depth import InputError
from dense_depth.synthetic.cameras import CAMERAS, camera
from dense_depth.synthetic.config import VERSION, SynthConfig
from dense_depth.synthetic.lidar import LIDAR, Lidar
from dense_depth.synthetic.scene import CLASSES, SceneWriter
from dense_depth.synthetic.tables import Tables

ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down"),
)
VISIBILITY = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}
MARKER = "synthetic.json"  # in the root of a generated dataset: its config, and the permission to replace it


def clear(out: Path) -> None:
    """Empties the dataset folder, if all that it holds is an earlier dataset of this generator."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out must be a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        version = str(json.loads((out / MARKER).read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        version = ""
    if not VERSION.fullmatch(version):
        raise InputError(f"{out}: is not empty and not a generated dataset; choose another --out")
    for folder in (version, "samples", "sweeps", "maps", "truth"):
        if (out / folder).is_dir():
            shutil.rmtree(out / folder)


def generate(out: Path, config: SynthConfig, on_keyframe: Callable[[], None] = lambda: None) -> None:
    """Generates a dataset; the tables are written last, so one that was cut short does not load.

    Args:
        out: Folder of the dataset: absent, empty, or an earlier dataset of this generator, which is replaced.
        config: What to generate.
        on_keyframe: Called after every finished keyframe.

    Raises:
        InputError: An option is out of range, or ``out`` holds something else or cannot be written.
    """
    config.check()
    try:
        clear(Path(out))
        write(Path(out), config, on_keyframe)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error


def write(out: Path, config: SynthConfig, on_keyframe: Callable[[], None]) -> None:
    """Writes a dataset into an empty folder; as `generate`."""
    for folder in ("maps", f"sweeps/{LIDAR}", *(f"samples/{channel}" for channel in (LIDAR, *CAMERAS))):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(json.dumps(dataclasses.asdict(config), indent=1))
    tables = Tables(config.seed)
    for index, name in enumerate(CLASSES, start=1):
        tables.add("category", name, name=name, description="", index=index)
    for name in ATTRIBUTES:
        tables.add("attribute", name, name=name, description="")
    tables.rows["visibility"] = [{"token": key, "level": name, "description": ""} for key, name in VISIBILITY.items()]
    for channel in (LIDAR, *CAMERAS):
        tables.add("sensor", channel, channel=channel, modality="lidar" if channel == LIDAR else "camera")
    lidar = Lidar(
        config.lidar_beams,
        config.lidar_azimuths,
        config.lidar_noise_m,
        config.lidar_range_m,
        config.lidar_motion,
    )
    size = config.image_width, config.image_height
    cameras = [camera(channel, *size, config.lidar_flash) for channel in CAMERAS]
    for index in range(config.scenes):
        scene = SceneWriter(out, config, index, tables, lidar, cameras)
        for key in range(config.keyframes):
            scene.keyframe(key)
            on_keyframe()
        scene.finish()
    tables.write(out / config.version)
    if lidar.motion != "compensated":
        timing = {"point_times": "none" if config.lidar_flash else "order", "compensated": config.lidar_flash}
        (out / config.version / "lidar.json").write_text(json.dumps(timing))
