"""Can the detector learn at all? The tiny size on two keyframes of a generated city, scored on the same two.

mAP is nuScenes' own, over the classes that the two keyframes show.

    python benchmarks/overfit.py [--steps N] [--threads N]
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import tyro

from dense_depth.datasets import DatasetConfig
from dense_depth.synthetic import SynthConfig, generate
from pipelines import accumulate
from pipelines.runner import run
from training.detection.data import DataConfig
from training.train import Arguments, train


def main(steps: int = 250, threads: int | None = None, dataroot: Path | None = None) -> None:
    """Generates, labels, trains, and prints the scores.

    Args:
        steps: Steps of training.
        threads: Threads of torch.
        dataroot: Folder to generate into; a temporary one if not given.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = dataroot or Path(temporary)
        city, store = folder / "city", str(folder / "store")
        if not city.is_dir():
            generate(city, SynthConfig(scenes=1, keyframes=2, seed=5))
        of = DatasetConfig("nuscenes", city, "v1.0-synth")
        for kind in ("lidar", "accumulated"):
            arguments = accumulate.Arguments(of, store, kind=kind, scale=0.5)
            run(accumulate.plan(arguments)[0], workers=0)
        data = DataConfig(of, "accumulated", store)
        data = replace(data, train=("synth-0000",), val=("synth-0000",))
        options = Arguments(data, folder / "run", size="tiny", steps=steps, batch=2, workers=1, augment=False)
        options = replace(options, lr=2e-3, warmup=20, ema=0.98, save_every=steps, threads=threads)
        scores = train(options)
        shown = [ap for name, ap in scores["class_ap"].items() if scores["class_boxes"][name]]
        print(f"{steps} steps: mAP {sum(shown) / len(shown):.3f} over the {len(shown)} classes shown")


if __name__ == "__main__":
    tyro.cli(main)
