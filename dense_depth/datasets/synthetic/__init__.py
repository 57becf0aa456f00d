"""A generated dataset in the exact nuScenes format, with the exact depth of every camera frame.

A street is meshed (`world`), rays are cast into it at each sensor's own time and pose (`sensors`), and the results are
written as the files and rows of scenes (`scene`, `tables`, `truth`), which make a dataset (`dataset`).
The map frame is the world frame: metres, z up, the street along x. All objects are rigid and known in closed form at
any time, so a camera that fires 18 ms before the LiDAR sees the moving ones where they are then. A sweep is a snapshot
at its timestamp: there is no distortion within a sweep.

As in nuScenes, a sample_data row between keyframes belongs to the sample that follows it; images exist at keyframes.
"""

from dense_depth.datasets.synthetic.config import SynthConfig
from dense_depth.datasets.synthetic.dataset import generate
from dense_depth.datasets.synthetic.sensors import CAMERAS, camera, cast
from dense_depth.datasets.synthetic.truth import Surface, Truth, read_truth
from dense_depth.datasets.synthetic.world import World, cuboid

__all__ = ["CAMERAS", "Surface", "SynthConfig", "Truth", "World", "camera", "cast", "cuboid", "generate", "read_truth"]
