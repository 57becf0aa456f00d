"""What an annotated object is made of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dense_depth.geometry import SE3
from dense_depth.synthetic.mesh import Mesh

BOX_MARGIN_M = 0.05  # an annotated box reaches this far beyond its object, but for the floor: range noise stays inside


@dataclass(frozen=True)
class Part:
    """A rigid part of a body, such as a leg.

    Attributes:
        mesh: In the frame of the part, which is the frame of the box if ``box_SE3_part`` is None.
        box_SE3_part: Pose of the part when the object has travelled so many metres.
    """

    mesh: Mesh
    box_SE3_part: Callable[[float], SE3] | None = None


@dataclass(frozen=True)
class Body:
    """An object of a nuScenes category. Box frame: x forward, y left, z up from the centre of the annotated box.

    Attributes:
        category: nuScenes category, "vehicle.car" for example.
        size_lwh_m: Size of the annotated box, whatever way the parts move.
        parts: What it is made of.
    """

    category: str
    size_lwh_m: Float[np.ndarray, "3"]
    parts: tuple[Part, ...]
