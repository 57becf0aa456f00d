"""The file that a detector is kept in."""

import dataclasses
import hashlib
import json
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

from dense_depth.checkpoint import read_checkpoint, write_checkpoint
from training.models.detector import Detector
from training.models.sizes import DetectorConfig

FORMAT = "dense-depth detector 1"


def save_detector(path: Path, detector: Detector, trained: dict[str, Any]) -> None:
    """Writes weights, configuration and how it was trained as safetensors; whole or not at all."""
    state = {name: x.detach().cpu().contiguous() for name, x in detector.state_dict().items()}
    write_checkpoint(path, state, FORMAT, config=dataclasses.asdict(detector.config), trained=trained)


def load_detector(path: Path) -> tuple[Detector, str]:
    """Reads what ``save_detector`` wrote; returns the detector and the file's sha256.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    hint = "training/train.py writes detector.safetensors into its --out"
    with read_checkpoint(path, FORMAT, "the detector", hint) as (state, metadata):
        config = _from_json(DetectorConfig, json.loads(metadata["config"]))
        # Its weights come from this file, not from where training began.
        detector = Detector(replace(config, model=replace(config.model, pretrained=None)))
        detector.load_state_dict(state)
    return detector, hashlib.sha256(path.read_bytes()).hexdigest()


def _from_json(cls: Any, values: dict[str, Any]) -> Any:
    """A nested dataclass from what ``dataclasses.asdict`` made of it; JSON has no tuples."""
    hints, arguments = typing.get_type_hints(cls), {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _from_json(hints[name], value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)
