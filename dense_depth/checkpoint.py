"""The file that trained weights are kept in: safetensors, with what else is needed as JSON in its metadata."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from dense_depth import InputError


def write_checkpoint(path: Path, state: dict[str, Tensor], file_format: str, **values: Any) -> None:
    """Writes weights, and values as JSON; whole or not at all."""
    from safetensors.torch import save

    metadata = {"format": file_format} | {name: json.dumps(value) for name, value in values.items()}
    partial = path.with_suffix(".partial")
    partial.write_bytes(save(state, metadata))
    partial.replace(path)


@contextmanager
def read_checkpoint(path: Path, file_format: str, what: str, hint: str) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Weights and metadata of a file, for a ``with`` block that makes the network of them.

    Args:
        path: The file.
        file_format: As it was written with.
        what: The network, in words.
        hint: What to do where there is no file.

    Raises:
        InputError: The file is missing, damaged, or of another format, or the block finds another network in it.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; {hint}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != file_format:
                raise InputError(f"{path}: not a checkpoint of {what} (format {metadata.get('format')!r})")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        yield state, metadata
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or no safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: a checkpoint of another architecture: {str(error).splitlines()[0]}") from error
