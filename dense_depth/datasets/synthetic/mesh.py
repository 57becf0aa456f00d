"""Meshes of triangles, and rays cast into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dense_depth.geometry import SE3, transform

Vector = Sequence[float] | Float[np.ndarray, "3"]
Colour = Sequence[int] | Int[np.ndarray, "3"]


@dataclass(frozen=True)
class Mesh:
    """Triangles with an RGB albedo each; corners run counter-clockwise seen from outside."""

    corners_m: Float[np.ndarray, "t 3 3"]
    colours: UInt8[np.ndarray, "t 3"]

    @cached_property
    def normals(self) -> Float[np.ndarray, "t 3"]:
        """Unit outward normals."""
        a, b, c = np.moveaxis(self.corners_m, 1, 0)
        normals = np.cross(b - a, c - a)
        return normals / np.linalg.norm(normals, axis=1, keepdims=True)

    @cached_property
    def raycaster(self) -> Any:
        """The mesh as an open3d RaycastingScene, built on first use."""
        from open3d.core import Tensor
        from open3d.t.geometry import RaycastingScene

        scene = RaycastingScene()
        vertices_m = self.corners_m.reshape(-1, 3).astype(np.float32)
        triangles = np.arange(len(vertices_m), dtype=np.uint32).reshape(-1, 3)
        scene.add_triangles(Tensor.from_numpy(vertices_m), Tensor.from_numpy(triangles))
        return scene

    def cast(self, mesh_SE3_sensor: SE3, rays: Float[np.ndarray, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
        """The distance of the nearest hit on each ray, in units of the ray (inf: none), and its triangle."""
        from open3d.core import Tensor

        origins_and_directions = np.empty((len(rays), 6), np.float32)
        origins_and_directions[:, :3] = mesh_SE3_sensor[:3, 3]
        origins_and_directions[:, 3:] = rays @ mesh_SE3_sensor[:3, :3].T.astype(np.float32)
        hits = self.raycaster.cast_rays(Tensor.from_numpy(origins_and_directions))
        return hits["t_hit"].numpy(), hits["primitive_ids"].numpy().astype(np.int32)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many in the same frame; triangles keep their order."""
    return Mesh(np.concatenate([mesh.corners_m for mesh in meshes]), np.concatenate([mesh.colours for mesh in meshes]))


def cuboid(size_m: Vector, centre_m: Vector, colour: Colour, dst_SE3_src: SE3 | None = None) -> Mesh:
    """A box that is axis-aligned in frame src, given in frame dst (the same when None)."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    vertices_m = corners * np.asarray(size_m) + np.asarray(centre_m)
    if dst_SE3_src is not None:
        vertices_m = transform(dst_SE3_src, vertices_m)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return Mesh(vertices_m[triangles], np.tile(np.asarray(colour, np.uint8), (12, 1)))
