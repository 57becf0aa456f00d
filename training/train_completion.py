"""Trains the network that completes labels, on any dataset that has sweeps and images; see ``--help``.

One process, or several with ``torchrun --nproc-per-node N training/train_completion.py ...``. Everything is in this
file, from top to bottom; what a sample is, is in completion/data.py, and what is minimised in completion/loss.py.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import tyro
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dense_depth import InputError
from dense_depth.completion.network import SIZES, CompletionNetwork
from dense_depth.completion.predict import (
    SHIPPED,
    Calibration,
    confidence_score,
    load_checkpoint,
    save_checkpoint,
)
from dense_depth.quality.errors import OUTLIER_M
from training.completion.data import CompletionData, Data
from training.completion.hide import HideConfig, Sample
from training.completion.loss import LossConfig, completion_loss
from training.completion.view import ViewConfig
from training.loop import (
    Draws,
    batches,
    begin,
    resume,
    run_command,
    running_average,
    save_state,
    warm_cosine,
)

CALIBRATION_BINS = 24
FREE = ("out", "workers", "threads", "device", "validate_every", "validate_frames", "validate", "init")  # on resuming
LEAST = {"validate_every": 1, "validate_frames": 1}


@dataclass(frozen=True)
class Arguments:
    """Trains the network that completes labels.

    A label is shown in part: without its key sweep, a single sweep alone, or with regions cut out; the rest is what
    the network has to say. So no labels are needed but accumulated ones, from pipelines/accumulate.py.

    Attributes:
        data: A dataset and its labels, as key=value pairs with commas: dataset=nuscenes,dataroot=D,version=v1.0-mini,
            store=S,ref=T,scenes=A+B,truth=yes. May be given several times: the frames are mixed.
        validate: As --data, to measure and to calibrate confidence on; frames that are not trained on.
        out: Folder for the checkpoint, the state to resume from, and TensorBoard's files.
        size: Size of a new network; "small" is for CPUs.
        init: Start from the weights of this checkpoint, or from those that come with the program ("shipped").
        steps: Optimiser steps.
        batch: Samples in a step, of all processes together.
        lr: Highest learning rate, after a warm-up; it falls to zero along half a cosine.
        weight_decay: Of AdamW.
        warmup: Steps until the highest learning rate.
        clip: Largest norm of the gradient.
        ema: Share that the averaged weights keep at each step.
        bf16: Compute convolutions in bfloat16.
        view: How a frame becomes a training image.
        hide: What of a label is shown.
        loss: Weights of the terms of the loss.
        workers: Processes that read data, per training process.
        seed: Of weights, order and samples.
        validate_every: Steps between validations and saves.
        validate_frames: Frames to validate on.
        threads: Threads of torch; its own choice if not given.
        device: Where to train; a GPU if there is one, else the CPU.
    """

    data: tyro.conf.UseAppendAction[tuple[str, ...]]
    out: Path
    validate: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    size: Literal["small", "large"] = "small"
    init: str | None = None
    steps: int = 20_000
    batch: int = 8
    lr: float = 2e-3
    weight_decay: float = 1e-3
    warmup: int = 200
    clip: float = 5.0
    ema: float = 0.999
    bf16: bool = True
    view: Annotated[ViewConfig, tyro.conf.arg(name="")] = field(default_factory=ViewConfig)
    hide: Annotated[HideConfig, tyro.conf.arg(name="")] = field(default_factory=HideConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    workers: int = 1
    seed: int = 0
    validate_every: int = 1000
    validate_frames: int = 96
    threads: int | None = None
    device: Literal["cpu", "cuda"] | None = None


def main() -> int:
    """Entry point; returns the exit status."""
    return run_command("train_completion", lambda: train(tyro.cli(Arguments, config=(tyro.conf.FlagCreatePairsOff,))))


def train(arguments: Arguments) -> None:
    """Trains from the last saved step on, and writes ``completion.safetensors``.

    Raises:
        InputError: An option, a dataset, a version or a checkpoint cannot be used.
    """
    device, rank, n_ranks = begin(arguments, LEAST)
    is_main = rank == 0

    torch.manual_seed(arguments.seed)
    training = CompletionData(
        [Data.parse(text, "--data") for text in arguments.data], arguments.view, arguments.hide, arguments.seed
    )
    network = CompletionNetwork(SIZES[arguments.size])
    if arguments.init:
        initial, _ = load_checkpoint(SHIPPED if arguments.init == "shipped" else Path(arguments.init))
        if initial.config != network.config:
            raise InputError(f"--init {arguments.init}: another size of network than --size {arguments.size}")
        network = initial
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = AveragedModel(network, avg_fn=partial(running_average, arguments.ema), use_buffers=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=arguments.lr, weight_decay=arguments.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, partial(warm_cosine, warmup=arguments.warmup, steps=arguments.steps)
    )

    state_path = arguments.out / "state.pt"
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(asdict(arguments), default=str))
    first = 0
    if state_path.exists():
        first = resume(state_path, config, FREE, network, averaged, optimiser, schedule)
    elif is_main:
        (arguments.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    model = DistributedDataParallel(network) if n_ranks > 1 else network
    if is_main:
        n_parameters = sum(p.numel() for p in network.parameters())
        print(
            f"train_completion: {len(training)} frames, {n_parameters / 1e6:.2f} M parameters, step {first} of "
            f"{arguments.steps} on {n_ranks} x {device}",
            flush=True,
        )
    board = _board(arguments.out, first) if is_main else None

    draws = Draws(len(training), arguments.seed, first * arguments.batch, rank, n_ranks)
    samples = batches(training, draws, arguments.batch // n_ranks, arguments.workers)
    started, waited, sums = time.monotonic(), 0.0, dict.fromkeys(("loss", "absolute", "relative", "sky"), 0.0)
    for step in range(first, arguments.steps):
        asked = time.monotonic()
        sample = Sample(*(x.to(device, non_blocking=True) for x in next(samples)))
        waited += time.monotonic() - asked
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
            prediction = model(*sample[:4])
        terms = completion_loss(prediction, sample, arguments.loss)
        if not terms["loss"].isfinite():
            raise InputError(f"step {step}: the loss is not finite; lower --lr, or resume from the last save")
        optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), arguments.clip)
        optimiser.step()
        schedule.step()
        averaged.update_parameters(network)

        for name in sums:
            sums[name] += float(terms[name].detach())
        done = step + 1
        if is_main and (done % 50 == 0 or done == arguments.steps):
            n = min((done - 1) % 50 + 1, done - first)
            rate = (time.monotonic() - started) / (done - first)
            print(
                f"step {done}/{arguments.steps}, "
                + ", ".join(f"{name} {total / n:.3f}" for name, total in sums.items())
                + f", {rate:.2f} s a step, {100 * waited / (time.monotonic() - started):.0f} % waiting for data, "
                f"{rate * (arguments.steps - done) / 60:.0f} min left",
                flush=True,
            )
            if board:
                for name, total in sums.items():
                    board.add_scalar(f"train/{name}", total / n, done)
                board.add_scalar("train/lr", schedule.get_last_lr()[0], done)
            sums = dict.fromkeys(sums, 0.0)
        if is_main and (done % arguments.validate_every == 0 or done == arguments.steps):
            save_state(state_path, config, done, network, averaged, optimiser, schedule)
            _publish(arguments, config, done, averaged, device, board)
    if is_main and first >= arguments.steps:  # nothing to train: calibrate anew
        _publish(arguments, config, first, averaged, device, board)
    if n_ranks > 1:
        distributed.destroy_process_group()


def _publish(
    arguments: Arguments,
    config: dict[str, Any],
    step: int,
    averaged: AveragedModel,
    device: torch.device,
    board: Any,
) -> None:
    """Validates the averaged weights and writes them, calibrated."""
    network = cast(CompletionNetwork, averaged.module)
    calibration, figures = validate(network, arguments, device, board, step)
    places = ("out", "init", "device")  # a checkpoint travels: what it was trained on, not where that lay
    told = {name: value for name, value in config.items() if name not in places}
    told |= {name: [Data.parse(text, name).told() for text in told[name]] for name in ("data", "validate")}
    trained = {"steps": step, "config": told, "validation": figures}
    save_checkpoint(arguments.out / "completion.safetensors", network, calibration, trained)


def _board(out: Path, first: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=first + 1)


def validate(
    network: CompletionNetwork, arguments: Arguments, device: torch.device, board: Any, step: int
) -> tuple[Calibration, dict[str, float]]:
    """Measures pixels that the network was not shown, and calibrates its confidence on them.

    Returns:
        The calibration (the identity without --validate), and figures.
    """
    if not arguments.validate:
        return Calibration(), {}
    whole = ViewConfig(arguments.view.height, arguments.view.width, colour=0.0, flip=0.0)
    texts = [Data.parse(text, "--validate") for text in arguments.validate]
    data = CompletionData(texts, whole, arguments.hide, seed=1_000_000 + arguments.seed)
    frames = np.linspace(0, len(data) - 1, min(arguments.validate_frames, len(data))).astype(int)
    network.eval()
    scores, errors, shown = [], [], None
    for i, frame in enumerate(frames.tolist()):
        sample = Sample(*(x[None].to(device) for x in data[frame, i]))
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
            prediction = network(*sample[:4])
        asked = (sample.weight > 0) & (sample.depth_m == 0)
        scores.append(confidence_score(prediction)[asked].float().cpu().numpy())
        errors.append((prediction.depth_m - sample.target_m).abs()[asked].float().cpu().numpy())
        if i == len(frames) // 2:
            shown = sample, prediction
    network.train()
    if not any(map(len, scores)):
        print(f"validation at step {step}: no hidden pixels to judge; confidence is not calibrated", flush=True)
        return Calibration(), {}
    score, error = np.concatenate(scores), np.concatenate(errors)
    figures = {"mae_m": float(error.mean()), "rmse_m": float(np.sqrt((error**2).mean()))}
    figures["within"] = float((error <= OUTLIER_M).mean())
    print(
        f"validation at step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()), flush=True
    )
    if board:
        for name, value in figures.items():
            board.add_scalar(f"validation/{name}", value, step)
        assert shown
        board.add_image("validation/image_input_depth_target", _picture(*shown), step, dataformats="HWC")
    return calibrate(score, error), figures


def calibrate(score: np.ndarray, error_m: np.ndarray) -> Calibration:
    """Shares within ``OUTLIER_M`` in bins of as many pixels each, made to rise with the score."""
    order = np.argsort(score, kind="stable")
    bins = np.array_split(order, CALIBRATION_BINS)
    x = np.array([score[at].mean() for at in bins if len(at)])
    y = np.array([(error_m[at] <= OUTLIER_M).mean() for at in bins if len(at)])
    n = np.array([len(at) for at in bins if len(at)])
    while (fall := np.flatnonzero(np.diff(y) < 0)).size:  # pool adjacent violators
        i = fall[0]
        x, y = (np.concatenate([a[:i], [np.average(a[i : i + 2], weights=n[i : i + 2])], a[i + 2 :]]) for a in (x, y))
        n = np.concatenate([n[:i], [n[i] + n[i + 1]], n[i + 2 :]])
    x, y = np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]])  # so that no two scores are equal
    return Calibration(tuple(x.round(6).tolist()), tuple(y.round(6).tolist()))


def _picture(sample: Sample, prediction: Any) -> np.ndarray:
    """The image, what was shown, what the network says, and what is true, one above the other; RGB."""
    from dense_depth.quality.pictures import colours

    image = (255 * sample.image[0].permute(1, 2, 0)).byte().cpu().numpy()
    depths: list[Tensor] = [sample.depth_m[0], prediction.depth_m[0] * (prediction.sky[0] < 0), sample.target_m[0]]
    return np.vstack([image, *(colours(x.float().cpu().numpy())[..., ::-1] for x in depths)])


if __name__ == "__main__":
    sys.exit(main())
