"""Commands on datasets: ``python -m dense_depth synth``."""

import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from dense_depth import InputError
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


def main() -> None:
    """Runs a command; bad input ends it with one line and exit status 2."""
    try:
        app.cli(prog="python -m dense_depth")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
