"""The generator: keyframes a second and memory; and drawing a camera's triangles against casting its rays by open3d."""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from dense_depth.geometry import invert
from dense_depth.synthetic import SynthConfig, generate
from dense_depth.synthetic.cameras import CAMERAS, camera
from dense_depth.synthetic.mesh import merge
from dense_depth.synthetic.raster import Canvas
from dense_depth.synthetic.world import build_world

KEYFRAMES = 20


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "warm", SynthConfig(scenes=1, keyframes=1))  # compiles
        started = time.perf_counter()
        generate(Path(folder) / "data", SynthConfig(scenes=1, keyframes=KEYFRAMES))
        seconds = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{KEYFRAMES} keyframes of six 1600x900 images with truth and ten sweeps: {KEYFRAMES / seconds:.2f} a second, "
        f"its street included; peak memory {peak_gb:.2f} GB"
    )

    world = build_world(9.5, np.random.default_rng([0, 0]))
    mesh = merge([world.still[0], world.movers(0.0)[0]])
    instances = np.concatenate([world.still[1], world.movers(0.0)[1]])
    u, v = np.meshgrid(np.arange(1600), np.arange(900))
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    mesh.cast(np.zeros(3), np.ones((1, 3)))  # builds the tree
    times = {"drawn, one thread": [], "cast, all threads": []}
    for channel in CAMERAS:
        sensor = camera(channel, 1600, 900)
        world_SE3_cam = world.world_SE3_ego(0.0) @ sensor.ego_SE3_cam
        rays = pixels @ np.linalg.inv(sensor.K).T @ world_SE3_cam[:3, :3].T
        started = time.perf_counter()
        Canvas(900, 1600, len(world.actors) + 1).draw(mesh.corners_m, instances, invert(world_SE3_cam), sensor.K)
        times["drawn, one thread"].append(time.perf_counter() - started)
        started = time.perf_counter()
        mesh.cast(world_SE3_cam[:3, 3], rays)
        times["cast, all threads"].append(time.perf_counter() - started)
    drawn, cast = (1e3 * float(np.median(seconds)) for seconds in times.values())
    print(f"{len(mesh)} triangles into 1600x900: drawn {drawn:.0f} ms, cast {cast:.0f} ms: {cast / drawn:.0f}x")


if __name__ == "__main__":
    main()
