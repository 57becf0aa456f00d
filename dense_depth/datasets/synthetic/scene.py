"""One scene of a generated dataset, as files and as rows of the tables."""

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dense_depth.datasets.synthetic.config import SynthConfig
from dense_depth.datasets.synthetic.sensors import ELEVATIONS_DEG, SWEEP_US, SWEEPS_PER_KEYFRAME, Sensor, cast
from dense_depth.datasets.synthetic.tables import Row, Tables, chain, pose_fields
from dense_depth.datasets.synthetic.truth import Surface, create_truth, truth_path
from dense_depth.datasets.synthetic.world import GROUND_M, ROAD_M, Actor, Street, build_world
from dense_depth.geometry import invert, transform

START_US, SCENE_US, KEYFRAME_US = 1_600_000_000_000_000, 3_600_000_000, SWEEPS_PER_KEYFRAME * SWEEP_US


class SceneWriter:
    """Generates one scene, keyframe by keyframe: adds its rows to the tables and writes its files."""

    def __init__(self, out: Path, config: SynthConfig, index: int, tables: Tables, rig: list[Sensor]) -> None:
        """Adds what is known at the start and creates the truth; the rig is the LiDAR and then the cameras."""
        self.out, self.config, self.index, self.tables = out, config, index, tables
        self.lidar, *self.cameras = rig
        self.name = name = f"synth-{index:04d}"
        self.start_us = START_US + index * SCENE_US
        self.world = build_world((config.keyframes - 1) / 2, np.random.default_rng([config.seed, index]))
        self.data: dict[str, list[Row]] = {sensor.channel: [] for sensor in rig}
        self.boxes: dict[str, list[Row]] = {actor.name: [] for actor in self.world.actors}  # one per keyframe

        log = tables.add("log", name, logfile=name, vehicle="synth", date_captured="2020-09-13", location=name)
        map_file = f"maps/{tables.token('map', name)}.png"
        tables.add("map", name, log_tokens=[log["token"]], category="semantic_prior", filename=map_file)
        write_map(out / map_file, self.world.street)
        scene = tables.add("scene", name, name=name, description="Generated street", log_token=log["token"])
        self.samples = [
            tables.add("sample", name, key, timestamp=self.start_us + key * KEYFRAME_US, scene_token=scene["token"])
            for key in range(config.keyframes)
        ]
        chain(self.samples)
        first, last = self.samples[0]["token"], self.samples[-1]["token"]
        scene.update(nbr_samples=len(self.samples), first_sample_token=first, last_sample_token=last)
        for sensor in rig:
            mount = {"sensor_token": tables.token("sensor", sensor.channel), **pose_fields(sensor.ego_SE3_sensor)}
            K = [] if sensor.K is None else sensor.K.tolist()
            tables.add("calibrated_sensor", name, sensor.channel, **mount, camera_intrinsic=K)

        shape = (config.keyframes, config.image_height, config.image_width)
        tokens = {
            "sample_tokens": [sample["token"] for sample in self.samples],
            "instance_tokens": [tables.token("instance", name, actor.name) for actor in self.world.actors],
            "classes": [actor.category.split(".")[1] for actor in self.world.actors],
        }
        self.truth = {
            sensor.channel: create_truth(truth_path(out, scene["token"], sensor.channel), shape, tokens)
            for sensor in self.cameras
        }

    def keyframe(self, key: int) -> None:
        """The sweeps since the last keyframe, up to and with this one's, and its images and truth."""
        key_sweep = key * SWEEPS_PER_KEYFRAME
        for sweep in range(max(0, key_sweep - SWEEPS_PER_KEYFRAME + 1), key_sweep + 1):
            points, key_time_s = self.write_sweep(sweep)
        exposures = [self.record(camera, key_sweep) for camera in self.cameras]
        with ThreadPoolExecutor(2) as pool:  # open3d casts under the GIL on all cores; compression overlaps with it
            counts = list(pool.map(self.write_frame, repeat(key), self.cameras, exposures))
        in_view, unoccluded = np.sum(counts, axis=0)

        world_SE3_lidar = self.world.world_SE3_ego(key_time_s) @ self.lidar.ego_SE3_sensor
        points_world = transform(world_SE3_lidar, points[:, :3].astype(np.float64))
        for actor, visible in zip(self.world.actors, in_view / np.maximum(unoccluded, 1)):
            self.boxes[actor.name].append(self.box(actor, key, key_time_s, points_world, visible))

    def record(self, sensor: Sensor, sweep: int) -> tuple[float, Path]:
        """Adds the rows of one exposure; returns its time in the scene in seconds, and its file."""
        is_key = sweep % SWEEPS_PER_KEYFRAME == 0
        scene_us = sweep * SWEEP_US + sensor.delay_us
        time = {"timestamp": self.start_us + scene_us}
        about = (self.name, sensor.channel, sweep)
        ego_pose = self.tables.add("ego_pose", *about, **time, **pose_fields(self.world.world_SE3_ego(scene_us * 1e-6)))
        suffix, width, height = "jpg", self.config.image_width, self.config.image_height
        if sensor.K is None:
            suffix, width, height = "pcd.bin", 0, 0
        folder = "samples" if is_key else "sweeps"
        filename = f"{folder}/{sensor.channel}/{self.name}__{sensor.channel}__{time['timestamp']}.{suffix}"
        row = self.tables.add(
            "sample_data",
            *about,
            sample_token=self.samples[-(-sweep // SWEEPS_PER_KEYFRAME)]["token"],
            ego_pose_token=ego_pose["token"],
            calibrated_sensor_token=self.tables.token("calibrated_sensor", self.name, sensor.channel),
            **time,
            filename=filename,
            fileformat=suffix[:3],
            width=width,
            height=height,
            is_key_frame=is_key,
        )
        self.data[sensor.channel].append(row)
        return scene_us * 1e-6, self.out / filename

    def write_sweep(self, sweep: int) -> tuple[Float[np.ndarray, "n 5"], float]:
        """One LiDAR revolution; returns its points (x, y, z in the sensor frame, intensity, ring) and its time."""
        time_s, path = self.record(self.lidar, sweep)
        hits = cast(self.world, self.lidar, time_s)
        rng = np.random.default_rng([self.config.seed, self.index, sweep])
        range_m = hits.distance + self.config.lidar_noise_m * rng.standard_normal(len(hits.distance))
        back = np.flatnonzero(range_m <= self.config.lidar_range_m)  # no point where there is no return
        xyz = self.lidar.rays[back] * range_m[back, None]
        intensity = np.round(self.world.albedo[hits.surface[back]].mean(axis=1) / 3)
        points = np.column_stack([xyz, intensity, back % len(ELEVATIONS_DEG)]).astype(np.float32)
        points.tofile(path)
        return points, time_s

    def write_frame(self, key: int, camera: Sensor, exposure: tuple[float, Path]) -> Int[np.ndarray, "2 actors"]:
        """The image and truth of a camera at a keyframe; returns how many pixels show each actor and would if alone."""
        import cv2

        time_s, path = exposure
        hits = cast(self.world, camera, time_s)
        shape = (self.config.image_height, self.config.image_width)
        moving = np.array([False, *(actor.attribute.endswith(".moving") for actor in self.world.actors)])
        truth = self.truth[camera.channel]
        truth["depth_m"][key] = np.where(np.isfinite(hits.distance), hits.distance, 0).reshape(shape)
        truth["moving"][key] = moving[hits.instance].reshape(shape)
        truth["instance"][key] = hits.instance.reshape(shape)
        surface = np.where(hits.instance > 0, Surface.OBJECT, np.where(hits.surface < 0, Surface.SKY, Surface.GROUND))
        truth["surface"][key] = surface.reshape(shape)
        image = self.world.shaded(time_s)[hits.surface, ::-1].reshape(*shape, 3)
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"{path}: could not be written")
        return np.stack([np.bincount(hits.instance, minlength=len(moving))[1:], hits.rays_on])

    def box(self, actor: Actor, key: int, time_s: float, points_world: Float[np.ndarray, "n 3"], visible: float) -> Row:
        """The fields of the annotation of an actor at a keyframe; ``visible`` is the share of it that cameras see."""
        world_SE3_box = actor.world_SE3_box(time_s)
        points_box = transform(invert(world_SE3_box), points_world)
        length, width, height = actor.size_lwh_m.tolist()
        return {
            "sample_token": self.samples[key]["token"],
            "instance_token": self.tables.token("instance", self.name, actor.name),
            "visibility_token": str(1 + np.digitize(visible, [0.4, 0.6, 0.8])),
            "attribute_tokens": [self.tables.token("attribute", actor.attribute)],
            **pose_fields(world_SE3_box),
            "size": [width, length, height],
            "num_lidar_pts": int((np.abs(points_box) <= actor.size_lwh_m / 2).all(axis=1).sum()),
            "num_radar_pts": 0,
        }

    def finish(self) -> None:
        """Links the rows of each sensor and adds what is known at the end: instances and their annotations.

        An object is annotated from the first to the last keyframe in which the LiDAR hits it.
        """
        for rows in self.data.values():
            chain(rows)
        for actor in self.world.actors:
            boxes = self.boxes[actor.name]
            hit = [key for key, box in enumerate(boxes) if box["num_lidar_pts"]]
            if not hit:
                continue
            annotations = [
                self.tables.add("sample_annotation", self.name, actor.name, key, **boxes[key])
                for key in range(hit[0], hit[-1] + 1)
            ]
            chain(annotations)
            self.tables.add(
                "instance",
                self.name,
                actor.name,
                category_token=self.tables.token("category", actor.category),
                nbr_annotations=len(annotations),
                first_annotation_token=annotations[0]["token"],
                last_annotation_token=annotations[-1]["token"],
            )


def write_map(path: Path, street: Street) -> None:
    """A mask of the road from above, 0.1 m per pixel; the world's origin is the lower left corner."""
    import cv2

    x = np.arange(0.0, street.length_m, 1.0)
    y = street.middle(x)
    left, right = np.column_stack([x, y + ROAD_M]), np.column_stack([x, y - ROAD_M])
    mask = np.zeros((int(20 * GROUND_M), int(10 * street.length_m)), np.uint8)
    outline_px = np.array([0, len(mask)]) + np.concatenate([left, right[::-1]]) * [10, -10]
    cv2.imwrite(str(path), cv2.fillPoly(mask, [np.round(outline_px).astype(np.int32)], (255,)))
