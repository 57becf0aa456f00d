"""What wrong poses, clocks and calibration do to labels: the same generated city, recorded with one fault at a time.

Default labels at 704x256, the rows that BEVDepth uses, against exact depth.
"""

import tempfile
from pathlib import Path

from visibility import Candidate, measure

from dense_depth.accumulation import AccumulationConfig
from dense_depth.projection import VisibilityConfig
from dense_depth.synthetic import Faults, SynthConfig, generate

FAULTS = {
    "none": Faults(),
    "flat height, as nuScenes": Faults(flat_height=True),
    "planar poses: no z, roll, pitch": Faults(planar_poses=True),
    "pose noise 5 cm": Faults(pose_noise_m=0.05),
    "pose noise 0.2 degrees": Faults(pose_noise_deg=0.2),
    "pose drift 0.1 m/s": Faults(pose_drift_mps=0.1),
    "camera clock 10 ms ahead": Faults(clock_offset_ms=10.0),
    "calibration off by 0.5 degrees": Faults(calibration_error_deg=0.5),
    "calibration off by 5 cm": Faults(calibration_error_m=0.05),
    "boxes off by 10 cm, 2 degrees": Faults(annotation_noise_m=0.1, annotation_noise_deg=2.0),
    "half of the sweeps missing": Faults(missing_sweeps=0.5),
}


def main() -> None:
    print("fault                              coverage %  behind %  in front %    MAE m   RMSE m   AbsRel")
    for name, faults in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder) / "data", SynthConfig(scenes=1, keyframes=9, faults=faults))
            labels = Candidate(name, AccumulationConfig(), VisibilityConfig())
            measure(Path(folder) / "data", [labels], 0.44, 256)
        mean = labels.errors.means()
        print(
            f"{name:35s} {100 * mean['coverage']:9.2f} {100 * mean['behind']:9.3f} {100 * mean['in_front']:11.3f} "
            f"{mean['mae_m']:8.3f} {mean['rmse_m']:8.3f} {mean['abs_rel']:8.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
