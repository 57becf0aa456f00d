"""The options of a generated dataset."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dense_depth import InputError
from dense_depth.synthetic.faults import Faults
from dense_depth.synthetic.lidar import Motion
from dense_depth.synthetic.places import Place

VERSION = re.compile(r"(?!(samples|sweeps|maps|truth)$)[\w.-]*\w")
LEAST = {"scenes": 1, "keyframes": 1, "seed": 0, "image_width": 16, "image_height": 9, "lidar_azimuths": 1}
LEAST |= {"max_slope_deg": 0, "lidar_noise_m": 0, "lidar_range_m": 5}  # to the ground
LEAST |= {field.name: 0 for field in dataclasses.fields(Faults) if field.name != "clock_offset_ms"}
MOST = {"keyframes": 7200, "image_width": 8192, "image_height": 8192}  # an hour lies between the starts of scenes
MOST |= {"lidar_azimuths": 100_000, "missing_sweeps": 1, "clock_offset_ms": 1000, "calibration_error_deg": 90}
MOST |= {"max_slope_deg": 10}


@dataclass(frozen=True)
class SynthConfig:
    """What to generate."""

    version: str = "v1.0-synth"
    """Name of the table folder."""
    scenes: int = 4
    """Number of scenes, each in its own street."""
    keyframes: int = 20
    """Annotated instants per scene, two a second."""
    seed: int = 0
    """The same seed and options give the same bytes."""
    place: Place = "street"
    """A street with all that is in it; or, to test registration, a highway between walls or an open field."""
    max_slope_deg: float | None = None
    """Steepest slope of the road, which then climbs and falls; if not given, gentle ones."""
    image_width: int = 1600
    """Image width in pixels; the field of view stays."""
    image_height: int = 900
    """Image height in pixels."""
    lidar_beams: Literal[32, 64] = 32
    """Beams of the LiDAR: 32 as in nuScenes (30.7 degrees down to 10.7 up), 64 as in KITTI (24.3 down to 2 up)."""
    lidar_azimuths: int = 1084
    """Firings of the beams per revolution."""
    lidar_noise_m: float = 0.02
    """Standard deviation of a LiDAR range."""
    lidar_range_m: float = 70.0
    """Longest LiDAR range."""
    lidar_distortion: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The points are not corrected for the motion of the vehicle during a revolution, as KITTI's."""
    lidar_flash: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Nothing moves during a revolution, and lost pulses are left out. Cameras fire up to half a revolution before or
    after the sweep's timestamp, not before it."""
    faults: Annotated[Faults, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff] = Faults()  # noqa: RUF009  it is frozen
    """What the tables say wrongly."""

    @property
    def lidar_motion(self) -> Motion:
        """What happens during a revolution."""
        return "none" if self.lidar_flash else "raw" if self.lidar_distortion else "compensated"

    def check(self) -> None:
        """Refuses options that cannot be generated.

        Raises:
            InputError: An option is out of range.
        """
        if self.lidar_distortion and self.lidar_flash:
            raise InputError("--lidar-distortion and --lidar-flash: choose one; nothing moves during a flash")
        values = {field: value for field, value in (vars(self) | vars(self.faults)).items() if value is not None}
        for field, value in values.items():
            option = f"--{field.replace('_', '-')} {value}"
            if field in LEAST and not value >= LEAST[field]:  # NaN, too
                raise InputError(f"{option}: must be at least {LEAST[field]}")
            if field in MOST and not abs(value) <= MOST[field]:
                raise InputError(f"{option}: must be at most {MOST[field]}")
            if isinstance(value, float) and not abs(value) < 1e6:
                raise InputError(f"{option}: must be a plain number")
        if not VERSION.fullmatch(self.version):
            raise InputError(f"--version {self.version!r}: must be a plain folder name, such as v1.0-synth")
