"""Commands on datasets: ``python -m dense_depth synth`` and ``poses``."""

import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from dense_depth import InputError
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.synthetic import SynthConfig

app = tyro.extras.SubcommandApp()


@app.command
def synth(out: Path, config: Annotated[SynthConfig, tyro.conf.OmitArgPrefixes] = SynthConfig()) -> None:  # noqa: B008
    """Generate a dataset in nuScenes format with exact depth.

    Args:
        out: Folder to write; a dataset that this command made there before is replaced.
        config: What to generate.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dense_depth.synthetic import generate

    total, started = config.scenes * config.keyframes, time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as progress:
        task = progress.add_task("keyframes", total=total)

        def on_keyframe() -> None:
            progress.advance(task)
            done = round(progress.tasks[task].completed)
            if progress.disable and done * 10 // total > (done - 1) * 10 // total:
                print(f"keyframe {done} of {total}, {time.monotonic() - started:.1f} s", flush=True)

        generate(out, config, on_keyframe)
    size_mb = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(
        f"{out}: {total} keyframes in {config.scenes} scene(s), {size_mb:.0f} MB, {time.monotonic() - started:.1f} s; "
        f"read it with --dataset nuscenes --dataroot {out} --version {config.version}"
    )


@app.command
def poses(data: Annotated[DatasetConfig, tyro.conf.arg(name="")], out: Path, scenes: tuple[str, ...] = ()) -> None:
    """Find the poses of a dataset by registering its sweeps to each other, and write them as its format has them.

    kitti-raw: a file of world_SE3_cam0rect rows. nuscenes: a folder with ego_pose.json and sample_annotation.json, for
    boxes move with the poses.

    Args:
        data: The dataset; --poses says whether its poses are repaired or found anew by odometry.
        out: What to write.
        scenes: Names of scenes or splits; all scenes if none is given.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from catalog.figures import BY_NAME
    from dense_depth.poses import by_odometry, repaired

    if data.pose_source in ("auto", "dataset"):
        raise InputError("--poses: says how to find poses, repaired or odometry")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is there already; choose another --out")
    find, dataset = {"repaired": repaired, "odometry": by_odometry}[data.pose_source], open_dataset(data)
    found, table = [], None
    for scene in dataset.scenes(scenes):
        started = time.monotonic()
        posed, report = find(scene)
        found.append(posed)
        figures = {BY_NAME[name]: value for name, value in report.figures().items() if value is not None}
        headers = ("sweeps", "s", *(figure.header for figure in figures))
        table = table or Table(Column("scene", no_wrap=True), *headers, box=None, pad_edge=False)
        values = [figure.text(value) for figure, value in figures.items()]
        table.add_row(scene.name, str(len(scene.sweeps)), f"{time.monotonic() - started:.1f}", *values)
        if report.kept:
            print(f"note: {scene.name}: no poses were found that fit better; it keeps its own")
    paths = dataset.write_poses(found, out)
    Console(width=max(Console().width, 100)).print(table)
    print(", ".join(map(str, paths)))


def main() -> None:
    """Runs a command; bad input ends it with one line and exit status 2."""
    try:
        app.cli(prog="python -m dense_depth")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
