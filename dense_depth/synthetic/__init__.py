"""A generated dataset in the exact nuScenes format, with the exact depth of every camera frame.

A street with houses, plants and traffic (`world`, built from `street`, `houses`, `trees`, `scenery`, `traffic`,
`vehicles`, `cycles`, `diggers`, `people`), or another of the `places`, is a set of triangles at any time. The LiDAR
casts rays at it while all moves (`lidar`, `beams`), the cameras draw it (`cameras`, `raster`, `shading`), and the
results are written as the files and rows of scenes (`scene`, `tables`, `truth`, `faults`), which make a dataset
(`dataset`). The map frame is the world frame: metres, z up, the street along x. Where everything is is known in closed
form at any time, so a camera that fires 36 ms before the end of a sweep sees moving objects where they are then.

As in nuScenes, a sample_data row between keyframes belongs to the sample that follows it; images exist at keyframes.
"""

from dense_depth.synthetic.config import Faults, SynthConfig
from dense_depth.synthetic.dataset import generate

__all__ = ["Faults", "SynthConfig", "generate"]
