"""The options of a generated dataset."""

import re
from dataclasses import dataclass

from dense_depth import InputError

VERSION = re.compile(r"(?!(samples|sweeps|maps|truth)$)[\w.-]*\w")
LEAST = {"scenes": 1, "keyframes": 1, "seed": 0, "image_width": 16, "image_height": 9, "lidar_azimuths": 1}
LEAST |= {"lidar_noise_m": 0, "lidar_range_m": 1}


@dataclass(frozen=True)
class SynthConfig:
    """What to generate."""

    version: str = "v1.0-synth"
    """Name of the table folder."""
    scenes: int = 1
    """Number of scenes, each in its own street."""
    keyframes: int = 8
    """Annotated instants per scene, two a second."""
    seed: int = 0
    """The same seed and options give the same bytes."""
    image_width: int = 1600
    """Image width in pixels; the field of view stays."""
    image_height: int = 900
    """Image height in pixels."""
    lidar_azimuths: int = 1084
    """Firings of the 32 beams per revolution."""
    lidar_noise_m: float = 0.02
    """Standard deviation of a LiDAR range."""
    lidar_range_m: float = 70.0
    """Longest LiDAR range."""

    def check(self) -> None:
        """Refuses options that cannot be generated.

        Raises:
            InputError: An option is out of range.
        """
        for field, least in LEAST.items():
            if not getattr(self, field) >= least:  # NaN, too
                raise InputError(f"--{field.replace('_', '-')} {getattr(self, field)}: must be at least {least}")
        if not VERSION.fullmatch(self.version):
            raise InputError(f"--version {self.version!r}: must be a plain folder name, such as v1.0-synth")
