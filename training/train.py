"""Trains a BEVDepth detector on depth labels of one source, and scores it; see ``--help``.

    python training/train.py --depth-source completed --store S --ref T --dataset nuscenes --dataroot D --out runs/a

One process, or several with ``torchrun --nproc-per-node N training/train.py ...``. The loop is in this file, from top
to bottom; keyframes are in detection/, the network, its sizes and its losses in models/.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dense_depth import InputError
from dense_depth.datasets import open_dataset
from training.detection.data import Batch, DataConfig, DetectionData, collate, open_version
from training.evaluate import draw_output, print_scores, score
from training.loop import (
    Draws,
    batches,
    begin,
    resume,
    run_command,
    running_average,
    save_state,
    step_decay,
    warm_cosine,
)
from training.models.checkpoint import save_detector
from training.models.detector import Detector
from training.models.sizes import SIZES, DetectorConfig, SizeName

FREE = ("out", "workers", "threads", "device", "save_every", "compile", "score")  # on resuming
LEAST = {"accumulate": 1, "save_every": 1, "depth_weight": 0}


@dataclass(frozen=True)
class Arguments:
    """Trains a BEVDepth detector. Changing --depth-source, --store and --ref changes nothing but the depth labels.

    Attributes:
        data: What to train on.
        out: Folder for the checkpoint, the state to resume from, TensorBoard's files and the scores.
        size: Size of the detector: "tiny" for a CPU, "r50-256x704" as in the paper, "r101-512x1408".
        backbone: Another backbone than the size's: resnet-18, resnet-50, resnet-101, convnext-tiny, or a folder or hub
            name of a backbone of transformers with its weights; who loads the detector needs that again.
        pretrained: Folder or hub name of weights of the backbone, such as microsoft/resnet-50.
        parity: "bevdepth": targets, loss, cell centres and rounding exactly as in the reference.
        depth_target: A cell learns from all its labelled pixels ("histogram") or from the nearest ("min").
        depth_weight: Weight of the depth loss.
        cells_per_sample: Supervise cells of at most this total weight in each sample, drawn at random, so that sources
            of different density pull equally hard.
        steps: Optimiser steps.
        batch: Keyframes in a step, of all processes together.
        accumulate: Add up the gradients of so many batches in a step.
        lr: Highest learning rate.
        schedule: "step": a tenth after 79 % and again after 96 % of the steps, as in the paper; or "cosine".
        weight_decay: Of AdamW.
        warmup: Steps until the highest learning rate.
        clip: Largest norm of the gradient.
        ema: Share that the averaged weights keep at each step.
        bf16: Compute in bfloat16 where that is safe.
        compile: Compile the network; the first step takes minutes.
        workers: Processes that read data, per training process.
        seed: Of weights, order and augmentation.
        augment: Change images and the bird's-eye view at random.
        save_every: Steps between saves.
        threads: Threads of torch; its own choice if not given.
        device: Where to train; a GPU if there is one, else the CPU.
        score: Score the detector on --val at the end.
    """

    data: Annotated[DataConfig, tyro.conf.arg(name="")]
    out: Path
    size: SizeName = "r50-256x704"
    backbone: str | None = None
    pretrained: str | None = None
    parity: Literal["none", "bevdepth"] = "none"
    depth_target: Literal["histogram", "min"] = "histogram"
    depth_weight: float = 3.0
    cells_per_sample: float | None = None
    steps: int = 20_000
    batch: int = 8
    accumulate: int = 1
    lr: float = 2e-4
    schedule: Literal["step", "cosine"] = "cosine"
    weight_decay: float = 1e-2
    warmup: int = 200
    clip: float = 5.0
    ema: float = 0.999
    bf16: bool = True
    compile: bool = False
    workers: int = 4
    seed: int = 0
    augment: bool = True
    save_every: int = 500
    threads: int | None = None
    device: Literal["cpu", "cuda"] | None = None
    score: bool = True


def main() -> int:
    """Entry point; returns the exit status."""
    return run_command("train", lambda: train(tyro.cli(Arguments)))


def detector_config(arguments: Arguments) -> DetectorConfig:
    """The detector that the arguments ask for."""
    config = SIZES[arguments.size]
    config = replace(
        config,
        model=replace(
            config.model, backbone=arguments.backbone or config.model.backbone, pretrained=arguments.pretrained
        ),
        depth_targets=replace(config.depth_targets, mode=arguments.depth_target),
        depth_loss=replace(
            config.depth_loss, scale=arguments.depth_weight, cells_per_sample=arguments.cells_per_sample
        ),
    )
    return config.as_bevdepth() if arguments.parity == "bevdepth" else config


def recorded(arguments: Arguments) -> dict[str, Any]:
    """What is written beside a run: its options, and which labels it learns from."""
    version = open_version(arguments.data)
    labels = version and {"version": version.number, "manifest": version.manifest}
    return json.loads(json.dumps(asdict(arguments), default=str)) | {"labels": labels}


def train(arguments: Arguments) -> dict[str, Any]:
    """Trains from the last saved step on, writes ``detector.safetensors``, and returns the scores.

    Raises:
        InputError: An option, the dataset, the labels or a state cannot be used.
    """
    device, rank, n_ranks = begin(arguments, LEAST)
    is_main, supervise = rank == 0, arguments.data.depth_source != "none"

    torch.manual_seed(arguments.seed)
    setup = detector_config(arguments)
    data = replace(arguments.data, past=setup.model.past, augmentation=setup.image)
    dataset = open_dataset(data.of)
    training = DetectionData(data, dataset.scenes(data.train), arguments.augment, arguments.seed)
    scored = [*dataset.scenes(data.val)] if is_main and arguments.score else []  # now: an unknown name ends it here
    del dataset  # tables can fill gigabytes
    detector = Detector(setup).to(device)
    averaged = AveragedModel(detector, avg_fn=partial(running_average, arguments.ema), use_buffers=True)
    optimiser = torch.optim.AdamW(detector.parameters(), lr=arguments.lr, weight_decay=arguments.weight_decay)
    rate = warm_cosine if arguments.schedule == "cosine" else step_decay
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, partial(rate, warmup=arguments.warmup, steps=arguments.steps)
    )

    arguments.out.mkdir(parents=True, exist_ok=True)
    config = recorded(arguments)
    first, state_path = 0, arguments.out / "state.pt"
    if state_path.exists():
        first = resume(state_path, config, FREE, detector, averaged, optimiser, schedule)
    elif is_main:
        (arguments.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    model: Any = DistributedDataParallel(detector) if n_ranks > 1 else detector
    if arguments.compile:
        model = torch.compile(model)
    if is_main:
        for note in training.notes:
            print(f"note: {note}", flush=True)
        n_parameters = sum(p.numel() for p in detector.parameters())
        print(
            f"train: {len(training)} keyframes, depth source {data.depth_source}, {n_parameters / 1e6:.1f} M "
            f"parameters, step {first} of {arguments.steps} on {n_ranks} x {device}",
            flush=True,
        )
    board = _board(arguments.out, first) if is_main else None

    per_step = arguments.batch * arguments.accumulate
    draws = Draws(len(training), arguments.seed, first * per_step, rank, n_ranks)
    stream = batches(training, draws, arguments.batch // n_ranks, arguments.workers, collate)
    sums: dict[str, float] = {}
    started, waited, n_summed = time.monotonic(), 0.0, 0
    detector.train()
    for step in range(first, arguments.steps):
        optimiser.zero_grad(set_to_none=True)
        for _ in range(arguments.accumulate):
            asked = time.monotonic()
            batch: Batch = next(stream).to(device)
            waited += time.monotonic() - asked
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
                output = model(batch.images, batch.cameras)
            terms = detector.losses(output, batch, supervise)
            if not terms["loss"].isfinite():
                raise InputError(f"step {step}: the loss is not finite; lower --lr, or resume from the last save")
            (terms["loss"] / arguments.accumulate).backward()
            sums = {name: sums.get(name, 0.0) + float(term.detach()) for name, term in terms.items()}
            n_summed += 1
        torch.nn.utils.clip_grad_norm_(detector.parameters(), arguments.clip)
        optimiser.step()
        schedule.step()
        averaged.update_parameters(detector)

        done = step + 1
        if is_main and (done % 20 == 0 or done == arguments.steps):
            seconds = time.monotonic() - started
            each = seconds / (done - first)
            print(
                f"step {done}/{arguments.steps}, "
                + ", ".join(f"{name} {total / n_summed:.3f}" for name, total in sums.items())
                + f", {each:.2f} s a step, {100 * waited / seconds:.0f} % waiting for data, "
                f"{each * (arguments.steps - done) / 60:.0f} min left",
                flush=True,
            )
            assert board
            for name, total in sums.items():
                board.add_scalar(f"train/{name}", total / n_summed, done)
            sums, n_summed = {}, 0
        if is_main and (done % arguments.save_every == 0 or done == arguments.steps):
            save_state(state_path, config, done, detector, averaged, optimiser, schedule)
            assert board
            board.add_image("train/depth_and_boxes", draw_output(detector, output, batch), done, dataformats="HWC")
    if n_ranks > 1:
        distributed.destroy_process_group()
    if not is_main:
        return {}
    best = cast(Detector, averaged.module).eval()
    save_detector(arguments.out / "detector.safetensors", best, {"steps": arguments.steps, "config": config})
    if not arguments.score:
        return {}
    scores = score(best, data, scored, device, arguments.out / "results.json", arguments.workers)
    (arguments.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print_scores(scores)
    return scores


def _board(out: Path, first: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=first + 1)


if __name__ == "__main__":
    sys.exit(main())
