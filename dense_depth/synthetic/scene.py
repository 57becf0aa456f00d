"""One scene of a generated dataset, as files and as rows of the tables."""

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dense_depth.datasets.truth import truth_path
from dense_depth.geometry import SE3, invert, transform
from dense_depth.synthetic.cameras import Camera, expose
from dense_depth.synthetic.config import SynthConfig
from dense_depth.synthetic.faults import annotated_box, recorded_mount, recorded_pose
from dense_depth.synthetic.lidar import LIDAR, SWEEP_US, SWEEPS_PER_KEYFRAME, Lidar, Revolution, scan
from dense_depth.synthetic.places import PLACES
from dense_depth.synthetic.street import CROSSING_ROAD_M, GROUND_M, ROAD_M, Street
from dense_depth.synthetic.tables import Row, Tables, chain, pose_fields
from dense_depth.synthetic.traffic import Actor
from dense_depth.synthetic.truth import create_truth, rounded

START_US, SCENE_US, KEYFRAME_US = 1_600_000_000_000_000, 3_600_000_000, SWEEPS_PER_KEYFRAME * SWEEP_US
CLASSES = {  # nuScenes category to detection class
    "human.pedestrian.adult": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


class SceneWriter:
    """Generates one scene, keyframe by keyframe: adds its rows to the tables and writes its files."""

    def __init__(
        self, out: Path, config: SynthConfig, index: int, tables: Tables, lidar: Lidar, cameras: list[Camera]
    ) -> None:
        """Adds what is known at the start and creates the truth."""
        self.out, self.config, self.index, self.tables = out, config, index, tables
        self.lidar, self.cameras = lidar, cameras
        self.seed = (config.seed, index)
        self.name = name = f"synth-{index:04d}"
        self.start_us = START_US + index * SCENE_US
        self.world = PLACES[config.place](
            (config.keyframes - 1) / 2, np.random.default_rng(self.seed), config.max_slope_deg
        )
        channels = [LIDAR, *(camera.channel for camera in cameras)]
        self.data: dict[str, list[Row]] = {channel: [] for channel in channels}
        self.boxes: dict[str, list[Row]] = {actor.name: [] for actor in self.world.actors}  # one per keyframe
        self.hit: dict[str, list[int]] = {actor.name: [] for actor in self.world.actors}  # the keyframes

        log = tables.add("log", name, logfile=name, vehicle="synth", date_captured="2020-09-13", location=name)
        map_file = f"maps/{tables.token('map', name)}.png"
        tables.add("map", name, log_tokens=[log["token"]], category="semantic_prior", filename=map_file)
        write_map(out / map_file, self.world.street)
        scene = tables.add("scene", name, name=name, description=f"Generated {config.place}", log_token=log["token"])
        self.samples = [
            tables.add("sample", name, key, timestamp=self.start_us + key * KEYFRAME_US, scene_token=scene["token"])
            for key in range(config.keyframes)
        ]
        chain(self.samples)
        first, last = self.samples[0]["token"], self.samples[-1]["token"]
        scene.update(nbr_samples=len(self.samples), first_sample_token=first, last_sample_token=last)
        mounts: list[tuple[str, SE3, list]] = [(LIDAR, lidar.ego_SE3_lidar, [])]
        for i, camera in enumerate(cameras):
            mount = recorded_mount(camera.ego_SE3_cam, config.faults, (*self.seed, i))
            mounts.append((camera.channel, mount, camera.K.tolist()))
        for channel, ego_SE3_sensor, K in mounts:
            fields = {"sensor_token": tables.token("sensor", channel), **pose_fields(ego_SE3_sensor)}
            tables.add("calibrated_sensor", name, channel, **fields, camera_intrinsic=K)

        shape = (config.keyframes, config.image_height, config.image_width)
        attributes = {
            "sample_tokens": [sample["token"] for sample in self.samples],
            "instance_tokens": [tables.token("instance", name, actor.name) for actor in self.world.actors],
            "classes": [CLASSES[actor.body.category] for actor in self.world.actors],
        }
        self.truth = {
            camera.channel: create_truth(truth_path(out, scene["token"], camera.channel), shape, attributes)
            for camera in cameras
        }

    def keyframe(self, key: int) -> None:
        """The sweeps since the last keyframe, up to and with this one's, and its images and truth."""
        key_sweep = key * SWEEPS_PER_KEYFRAME
        since_last = range(max(0, key_sweep - SWEEPS_PER_KEYFRAME + 1), key_sweep + 1)
        sweeps = [sweep for sweep in since_last if sweep == key_sweep or not self.is_missing(sweep)]
        records = [self.record(LIDAR, sweep) for sweep in sweeps]
        exposures = [self.record(camera.channel, key_sweep, camera.delay_us) for camera in self.cameras]
        with ThreadPoolExecutor(2) as pool:
            scans = pool.submit(lambda: list(map(self.write_sweep, sweeps, records)))
            counts = list(pool.map(self.write_frame, repeat(key), self.cameras, exposures))
        seen, pixels_on = np.sum(counts, axis=0)
        self.annotate(key, scans.result()[-1], (seen / np.maximum(pixels_on, 1))[1:])

    def is_missing(self, sweep: int) -> bool:
        """Whether a sweep between keyframes was lost."""
        share = self.config.faults.missing_sweeps
        return share > 0 and np.random.default_rng([*self.seed, sweep, 4]).uniform() < share

    def recorded_pose(self, time_s: float, channel: str, sweep: int) -> SE3:
        """The ego pose at a time as the tables have it for one exposure of a sensor."""
        record = (*self.seed, list(self.data).index(channel), sweep)
        return recorded_pose(self.world.world_SE3_ego(time_s), time_s, self.config.faults, record)

    def record(self, channel: str, sweep: int, delay_us: int = 0) -> tuple[float, Path]:
        """Adds the rows of one exposure; returns its true time in the scene in seconds, and its file."""
        is_key, is_lidar = sweep % SWEEPS_PER_KEYFRAME == 0, channel == LIDAR
        scene_us = sweep * SWEEP_US + delay_us
        recorded_us = scene_us + (0 if is_lidar else round(1e3 * self.config.faults.clock_offset_ms))
        time = {"timestamp": self.start_us + recorded_us}
        about = (self.name, channel, sweep)
        pose = self.recorded_pose(recorded_us * 1e-6, channel, sweep)
        ego_pose = self.tables.add("ego_pose", *about, **time, **pose_fields(pose))
        suffix = "pcd.bin" if is_lidar else "jpg"
        folder = "samples" if is_key else "sweeps"
        filename = f"{folder}/{channel}/{self.name}__{channel}__{time['timestamp']}.{suffix}"
        row = self.tables.add(
            "sample_data",
            *about,
            sample_token=self.samples[-(-sweep // SWEEPS_PER_KEYFRAME)]["token"],
            ego_pose_token=ego_pose["token"],
            calibrated_sensor_token=self.tables.token("calibrated_sensor", self.name, channel),
            **time,
            filename=filename,
            fileformat=suffix[:3],
            width=0 if is_lidar else self.config.image_width,
            height=0 if is_lidar else self.config.image_height,
            is_key_frame=is_key,
        )
        self.data[channel].append(row)
        return scene_us * 1e-6, self.out / filename

    def write_sweep(self, sweep: int, record: tuple[float, Path]) -> Revolution:
        """One LiDAR revolution, into its file."""
        time_s, path = record
        revolution = scan(self.world, self.lidar, time_s, np.random.default_rng([*self.seed, sweep]))
        revolution.points.tofile(path)
        return revolution

    def write_frame(self, key: int, camera: Camera, exposure: tuple[float, Path]) -> Int[np.ndarray, "2 instances"]:
        """The image and truth of a camera at a keyframe; returns how many pixels show each instance and would alone."""
        import cv2

        time_s, path = exposure
        seen = expose(self.world, camera, time_s)
        moves = np.array([False, *(actor.moves for actor in self.world.actors)])
        truth = self.truth[camera.channel]
        truth["depth_m"][key] = rounded(seen.depth_m)
        truth["instance"][key] = seen.instance
        truth["moving"][key] = moves[seen.instance]
        truth["surface"][key] = seen.surface
        image = cv2.GaussianBlur(seen.image[..., ::-1], (3, 3), 0.55)  # a lens is no pinhole
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"{path.name}: is the disk full?")
        return np.stack([np.bincount(seen.instance.ravel(), minlength=len(moves)), seen.pixels_on])

    def annotate(self, key: int, revolution: Revolution, visible: Float[np.ndarray, " actors"]) -> None:
        """The boxes of a keyframe, as drawn by one who sees its points: around objects where they were hit.

        That is where an object was at the median time of the points on it. So one at the seam of the revolution, which
        is hit at both ends, is annotated where most of its points are. What is not hit is annotated where it was when
        the beam passed it.

        Args:
            key: The keyframe.
            revolution: Its sweep.
            visible: The share of each actor that cameras see.
        """
        time_s = key * KEYFRAME_US * 1e-6
        points_ego = transform(self.lidar.ego_SE3_lidar, revolution.points[:, :3].astype(np.float64))
        # The sweep is placed by its recorded pose, whatever that is.
        recorded_SE3_ego = self.recorded_pose(time_s, LIDAR, key * SWEEPS_PER_KEYFRAME)
        for i, actor in enumerate(self.world.actors):
            delays_s = revolution.delays_s[revolution.instances == i + 1]
            delay_s = float(np.median(delays_s)) if len(delays_s) else self.passed(actor, time_s)
            seen_from_s = time_s + (delay_s if self.lidar.motion == "raw" else 0.0)
            world_SE3_box = actor.world_SE3_box(time_s + delay_s)
            ego_SE3_box = invert(self.world.world_SE3_ego(seen_from_s)) @ world_SE3_box
            drawn_SE3_box = annotated_box(ego_SE3_box, self.config.faults, (*self.seed, i, key))
            if points_in(ego_SE3_box, actor, points_ego):
                self.hit[actor.name].append(key)
            length, width, height = actor.body.size_lwh_m.tolist()
            attribute = actor.attribute(time_s + delay_s)
            self.boxes[actor.name].append(
                {
                    "sample_token": self.samples[key]["token"],
                    "instance_token": self.tables.token("instance", self.name, actor.name),
                    "visibility_token": str(1 + np.digitize(visible[i], [0.4, 0.6, 0.8])),
                    "attribute_tokens": [self.tables.token("attribute", attribute)] if attribute else [],
                    **pose_fields(recorded_SE3_ego @ drawn_SE3_box),
                    "size": [width, length, height],
                    "num_lidar_pts": points_in(drawn_SE3_box, actor, points_ego),
                    "num_radar_pts": 0,
                }
            )

    def passed(self, actor: Actor, time_s: float) -> float:
        """When the beam of the revolution up to a time passes an actor, in seconds from then."""
        delay_s = 0.0
        for _ in range(3):  # meanwhile both move
            world_SE3_lidar = self.world.world_SE3_ego(time_s + delay_s) @ self.lidar.ego_SE3_lidar
            centre_m = transform(invert(world_SE3_lidar), actor.world_SE3_box(time_s + delay_s)[None, :3, 3])[0]
            delay_s = self.lidar.delay_s(centre_m)
        return delay_s

    def finish(self) -> None:
        """Links the rows of each sensor and adds what is known at the end: instances and their annotations.

        An object is annotated from the first to the last keyframe in which the LiDAR hits it.
        """
        for rows in self.data.values():
            chain(rows)
        for actor in self.world.actors:
            boxes, hit = self.boxes[actor.name], self.hit[actor.name]
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
                category_token=self.tables.token("category", actor.body.category),
                nbr_annotations=len(annotations),
                first_annotation_token=annotations[0]["token"],
                last_annotation_token=annotations[-1]["token"],
            )


def points_in(ego_SE3_box: SE3, actor: Actor, points_ego: Float[np.ndarray, "n 3"]) -> int:
    """How many points lie in a box of an actor's size."""
    return int((np.abs(transform(invert(ego_SE3_box), points_ego)) <= actor.body.size_lwh_m / 2).all(axis=1).sum())


def write_map(path: Path, street: Street) -> None:
    """A mask of the roads from above, 0.1 m per pixel; the world's origin is the lower left corner."""
    import cv2

    x = np.arange(0.0, street.length_m, 1.0)
    y = street.middle(x)
    left, right = np.column_stack([x, y + ROAD_M]), np.column_stack([x, y - ROAD_M])
    outlines = [np.concatenate([left, right[::-1]])]
    for crossing_m in street.crossings_m:
        low, high = crossing_m - CROSSING_ROAD_M, crossing_m + CROSSING_ROAD_M
        outlines.append(np.array([[low, 0], [high, 0], [high, 2 * GROUND_M], [low, 2 * GROUND_M]]))
    mask = np.zeros((int(20 * GROUND_M), int(10 * street.length_m)), np.uint8)
    for outline_m in outlines:
        outline_px = np.array([0, len(mask)]) + outline_m * [10, -10]
        cv2.fillPoly(mask, [np.round(outline_px).astype(np.int32)], (255,))
    cv2.imwrite(str(path), mask)
