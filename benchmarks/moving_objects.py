"""Moving objects on recorded KITTI drive 0005: sharp when carried along their tracks, smeared when not.

For the van and the cyclist, points of all sweeps within one second are brought to the time of each keyframe. Spread is
measured two ways: how far the points of other sweeps lie from the object as the key sweep saw it, and how far the
centres of single sweeps scatter. A picture shows both.
"""

from dataclasses import replace

import numpy as np
from _recorded import DRIVE, kitti_raw, pictures
from scipy.spatial import cKDTree

from dense_depth.accumulation import AccumulationConfig, SceneCloud, cut_sweep
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.geometry import invert, project, transform
from dense_depth.label import label_camera
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.sweeps import read_sweep

PICTURED_FRAME = 15


def main() -> None:
    scene = next(iter(open_dataset(DatasetConfig("kitti-raw", kitti_raw())).scenes([DRIVE])))
    config = AccumulationConfig()
    movers = [track for track in scene.tracks if track.travel_m > 20]
    print("object     dynamics   to key sweep m (median, 95 %)   sweep centres RMS m   points")
    for track in movers:
        for dynamics in ("none", "boxes"):
            distances, scatter = [], []
            for key in scene.sweeps[10:30:5]:
                clouds = points_of(scene, track, key, config, dynamics)
                if len(clouds.get(key.token, ())) < 20 or len(clouds) < 5:
                    continue
                others = [cloud for token, cloud in clouds.items() if token != key.token]
                distances.append(cKDTree(clouds[key.token]).query(np.concatenate(others))[0])
                centres = np.array([cloud.mean(0) for cloud in clouds.values()])
                scatter.append(np.sqrt(((centres - centres.mean(0)) ** 2).sum(1).mean()))
            d = np.concatenate(distances)
            print(
                f"{track.category:10s} {dynamics:8s} {np.median(d):16.3f} {np.percentile(d, 95):10.3f} "
                f"{np.mean(scatter):21.3f} {len(d):8d}"
            )
    print(f"picture: {draw(scene, movers)}")


def points_of(scene, track, key, config, dynamics):
    """World points of one object in the sweeps around a key sweep, carried to its time or not."""
    clouds = {}
    at_key = track.box_at(key.timestamp_us)
    for sweep in scene.sweeps:
        box = track.box_at(sweep.timestamp_us)
        if box is None or abs(sweep.timestamp_us - key.timestamp_us) > 1e6 * config.past_s:
            continue
        cut = cut_sweep(read_sweep(sweep), sweep.world_SE3_sensor, [box], config, sweep.ego_crops)
        points_box = cut.xyz[:, cut.start[-2] : cut.start[-1]].T.astype(np.float64)
        pose = at_key.world_SE3_box if dynamics == "boxes" else box.world_SE3_box
        if len(points_box):
            clouds[sweep.token] = transform(pose, points_box)
    return clouds


def draw(scene, movers) -> str:
    """Label over image around each mover, without and with motion compensation."""
    import cv2

    frame = scene.frames_of("image_02")[PICTURED_FRAME]
    height, width, K = label_camera(frame, 1.0)
    grey = cv2.cvtColor(cv2.imread(str(frame.path), cv2.IMREAD_GRAYSCALE), cv2.COLOR_GRAY2BGR) // 2 + 40
    rows = []
    for dynamics in ("none", "boxes"):
        cloud = SceneCloud(scene, [frame], replace(AccumulationConfig(), dynamics=dynamics))
        untested = VisibilityConfig(visibility="none")
        depth_m = render_label(cloud, frame, K, untested, new_keys(height, width))[0].depth_m
        tone = np.clip(np.log(np.maximum(depth_m, 3) / 3) / np.log(60 / 3), 0, 1)
        colour = cv2.applyColorMap((255 * (1 - tone)).astype(np.uint8), cv2.COLORMAP_TURBO)
        picture = np.where((depth_m > 0)[..., None], colour, grey)
        crops = []
        for track in movers:
            box = track.box_at(frame.timestamp_us)
            centre = transform(invert(frame.world_SE3_cam) @ box.world_SE3_box, np.zeros((1, 3)))
            u, v = project(K, centre)[0][0].astype(int)
            left, top = np.clip(u - 150, 0, width - 300), np.clip(v - 110, 0, height - 220)
            crops.append(picture[top : top + 220, left : left + 300])
        rows.append(np.hstack(crops))
    path = pictures() / "moving_objects.png"
    cv2.imwrite(str(path), cv2.resize(np.vstack(rows), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    return str(path)


if __name__ == "__main__":
    main()
