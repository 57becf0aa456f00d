"""The things of the generated street: inside their boxes however they move, and well-formed."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest

from dense_depth.synthetic import cycles, diggers, houses, people, scenery, trees, vehicles
from dense_depth.synthetic.body import BOX_MARGIN_M, Body
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Mesh, merge

Rng = np.random.Generator
SEEDS = range(12)

# What makes a thing of a random generator, and how many triangles it may have.
BODIES: dict[str, tuple[Callable[[Rng], Body], int]] = {
    "car": (vehicles.car, 350),
    "truck": (vehicles.truck, 350),
    "bus": (vehicles.bus, 350),
    "trailer": (vehicles.trailer, 350),
    "construction": (diggers.construction, 350),
    "motorcycle": (lambda rng: cycles.motorcycle(rng, False), 300),
    "motorcyclist": (lambda rng: cycles.motorcycle(rng, True), 450),
    "bicycle": (lambda rng: cycles.bicycle(rng, False), 300),
    "cyclist": (lambda rng: cycles.bicycle(rng, True), 450),
    "pedestrian": (people.pedestrian, 150),
    "cone": (scenery.traffic_cone, 60),
    "barrier": (scenery.barrier, 100),
}
MESHES: dict[str, tuple[Callable[[Rng], Mesh], int]] = {
    "tree": (trees.tree, 900),
    "bush": (trees.bush, 500),
    "hedge": (lambda rng: trees.hedge(rng.uniform(0.4, 10), rng), 1300),
    "lamp post": (scenery.lamp_post, 100),
    "traffic light": (scenery.traffic_light, 150),
    "sign": (scenery.sign, 60),
    "fence": (lambda rng: scenery.fence(rng.uniform(0.5, 10), rng), 600),
    "bollard": (scenery.bollard, 60),
    "bench": (scenery.bench, 100),
    "litter bin": (scenery.litter_bin, 100),
    "bus shelter": (scenery.bus_shelter, 200),
    "building": (lambda rng: houses.building(rng.uniform(2, 24), rng.uniform(5, 14), rng), 300),
}


def points_m(body: Body, distance_m: float) -> np.ndarray:
    """Corners of all parts in the box frame."""
    parts = [
        part.mesh if part.box_SE3_part is None else part.mesh.moved(part.box_SE3_part(distance_m))
        for part in body.parts
    ]
    return merge(parts).corners_m.reshape(-1, 3)


@pytest.mark.parametrize("name", BODIES)
def test_bodies_stay_inside_their_boxes_and_stand_on_the_floor(name: str) -> None:
    """... for all distances travelled, with the margin that keeps noisy LiDAR points inside, and no more."""
    for seed in SEEDS:
        body = BODIES[name][0](np.random.default_rng(seed))
        half = body.size_lwh_m / 2
        distances_m = np.linspace(-1.0, 4.6, 24 if len(body.parts) > 1 else 1)
        points = np.stack([points_m(body, distance_m) for distance_m in distances_m])
        assert points[..., 2].min(axis=1) == pytest.approx(-half[2], abs=1e-6)
        top, reach = points[..., 2].max(), np.abs(points[..., :2]).max(axis=(0, 1))
        assert top <= half[2] - BOX_MARGIN_M + 1e-6 and (reach <= half[:2] - BOX_MARGIN_M + 1e-6).all()
        assert [*reach, top] == pytest.approx(half - BOX_MARGIN_M, abs=0.02)


@pytest.mark.parametrize("name", [*BODIES, *MESHES])
def test_triangles_are_few_and_sound(name: str) -> None:
    """Areas are not zero; texture coordinates are metres from the low corner of a face; a seed says it all."""
    make, most = (BODIES | MESHES)[name]
    for seed in SEEDS:
        thing, again = (make(np.random.default_rng(seed)) for _ in range(2))
        meshes, copies = ([x] if isinstance(x, Mesh) else [part.mesh for part in x.parts] for x in (thing, again))
        mesh = merge(meshes)
        assert len(mesh) <= most
        a, b, c = np.moveaxis(mesh.corners_m, 1, 0)
        assert np.linalg.norm(np.cross(b - a, c - a), axis=1).min() > 1e-7
        assert np.abs(np.linalg.norm(mesh.normals, axis=1) - 1).max() < 1e-9
        corners = np.concatenate([mesh.corners_m, np.ones((len(mesh), 3, 1))], axis=2)
        places = np.einsum("tsk,tck->tcs", mesh.texture, corners)
        assert np.isfinite(places).all() and places.min() >= -1e-6
        assert np.isin(mesh.materials, list(Material)).all()
        for one, other in zip(meshes, copies, strict=True):
            assert np.array_equal(one.corners_m, other.corners_m) and np.array_equal(one.colours, other.colours)


def test_legs_move_with_the_distance() -> None:
    """Feet of pedestrians swing by half a metre, pedals turn, and nothing moves at the same distance."""
    for make, parts, least in ((people.pedestrian, (2, 4), 0.4), (lambda rng: cycles.bicycle(rng, True), (3, 5), 0.3)):
        body = make(np.random.default_rng(3))
        for part in (body.parts[i] for i in parts):  # the shins
            assert part.box_SE3_part is not None
            feet = [part.mesh.moved(part.box_SE3_part(d)).corners_m[-1, 0] for d in np.linspace(0, 4.6, 60)]
            assert np.ptp([foot[0] for foot in feet]) > least
            assert np.linalg.norm(np.diff(feet, axis=0), axis=1).max() < 0.25
        assert np.array_equal(points_m(body, 2.0), points_m(body, 2.0))
        assert np.array_equal(points_m(pickle.loads(pickle.dumps(body)), 2.0), points_m(body, 2.0))


def test_feet_follow_the_pedals() -> None:
    """The soles of a cyclist stay close to the pedals all the way round."""
    for seed in SEEDS:
        body = cycles.bicycle(np.random.default_rng(seed), True)
        for distance_m in np.linspace(0, 4.6, 7):
            moved = [part.mesh.moved(part.box_SE3_part(distance_m)) for part in body.parts[1:] if part.box_SE3_part]
            pedals, shins = moved[0], (moved[2], moved[4])
            for i, shin in enumerate(shins):
                pedal = pedals.corners_m[-4:].reshape(2, 6, 3)[i].mean(axis=0)
                sole = shin.corners_m[shin.materials == Material.RUBBER].reshape(-1, 3)
                assert np.linalg.norm(sole - pedal, axis=1).min() < 0.15


def test_light_passes_through_crowns() -> None:
    """From a quarter to 70 % of horizontal rays at the inner crown of a tree hit nothing."""
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        mesh = trees.tree(np.random.default_rng(seed))
        leaves = mesh.corners_m[mesh.materials == Material.FOLIAGE].reshape(-1, 3)
        low, high = np.percentile(leaves, [3, 97], axis=0)
        azimuth, turn = rng.uniform(0, 2 * np.pi, (2, 1000))
        ahead = np.column_stack([np.cos(azimuth), np.sin(azimuth), np.zeros(1000)])
        left = np.column_stack([-ahead[:, 1], ahead[:, 0], np.zeros(1000)])
        out = np.sqrt(rng.uniform(0, 1, (1000, 1)))
        radius, up = (high - low)[:2].min() / 2, np.array([0, 0, (high - low)[2] / 2])
        aim = (low + high) / 2 + out * (np.cos(turn)[:, None] * radius * left + np.sin(turn)[:, None] * up)
        distance, _ = mesh.cast(aim - 20 * ahead, ahead)
        assert 0.25 < np.isinf(distance).mean() < 0.7
        assert 4.5 < high[2] < 11 and 1.2 < radius < 3


def test_wheels_of_cycles_have_gaps() -> None:
    """A good part of the rays across a bicycle's wheel passes between the spokes."""
    body = cycles.bicycle(np.random.default_rng(0), False)
    hub = np.array([-body.size_lwh_m[0] / 2 + BOX_MARGIN_M + 0.34, -3.0, -body.size_lwh_m[2] / 2 + 0.34])
    turn, out = np.random.default_rng(1).uniform([0, 0.05], [2 * np.pi, 0.28], (500, 2)).T
    origins = hub + np.column_stack([out * np.cos(turn), np.zeros(500), out * np.sin(turn)])
    distance, _ = body.parts[0].mesh.cast(origins, np.broadcast_to([0.0, 1.0, 0.0], (500, 3)))
    assert 0.6 < np.isinf(distance).mean() < 0.99


def test_houses_reach_below_the_ground_and_start_their_windows_there() -> None:
    """Walls with windows begin 1.5 m below the ground, as `shading` takes them to, and are whole bays wide."""
    for seed in SEEDS:
        mesh = houses.building(11.3, 9.1, np.random.default_rng(seed))
        walls = mesh.corners_m[np.isin(mesh.materials, [Material.FACADE, Material.BRICK])]
        assert [walls[..., 2].min(), mesh.corners_m[..., 2].min()] == pytest.approx([-1.5, -1.5])
        assert np.ptp(walls[..., 0]) == pytest.approx(11.3, abs=1e-6)
        front = walls[(np.abs(walls[..., 1]) < 1e-9).all(axis=1)]
        assert np.ptp(front[..., 0]) == pytest.approx(4 * 2.6)
        assert 4 < mesh.corners_m[..., 2].max() < 17
