"""Labels made again without their key sweep and compared on its pixels: a measure without truth."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets.scene import Scene
from dense_depth.label import label_camera
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.quality.errors import DepthErrors


def hold_out_key_sweep(
    scene: Scene,
    cameras: Sequence[str],
    accumulation: AccumulationConfig,
    visibility: VisibilityConfig,
    scale: float = 1.0,
) -> Iterator[DepthErrors]:
    """Makes the labels of cameras of a scene without their key sweeps and compares them with these.

    The key sweep looks from almost the same place as the others, so this sees ghosts and pose errors, but hardly any
    see-through labels.

    Args:
        scene: The scene.
        cameras: Some of its cameras.
        accumulation: As the labels were made.
        visibility: As the labels were made.
        scale: Size of the labels as a fraction of the image size.

    Yields:
        The errors of each camera.
    """
    frames = [frame for camera in cameras for frame in scene.frames_of(camera)]
    cloud = SceneCloud(scene, frames, accumulation)
    alone = SceneCloud(scene, frames, replace(accumulation, past_s=0.0, future_s=0.0, dynamics="none"))
    as_seen = VisibilityConfig(visibility="none")
    for camera in cameras:
        errors = DepthErrors()
        for frame in scene.frames_of(camera):
            height, width, K = label_camera(frame, scale)
            keys = new_keys(height, width)
            reference, _ = render_label(alone, frame, K, as_seen, keys)
            label, _ = render_label(cloud, frame, K, visibility, keys, without=[frame.key_sweep])
            errors.add(label.depth_m, reference.depth_m)
        yield errors
