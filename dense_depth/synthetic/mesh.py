"""Meshes of textured triangles, and the shapes they are built from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dense_depth.geometry import invert, transform
from dense_depth.synthetic.materials import Material

Vector = Sequence[float] | Float[np.ndarray, "3"]
Vectors = Vector | Sequence[Vector] | Float[np.ndarray, "*n 3"]
Colour = Sequence[int] | Int[np.ndarray, "3"]


@dataclass(frozen=True)
class Mesh:
    """Triangles, seen from both sides.

    Attributes:
        corners_m: Corners of the triangles.
        texture: Place on the surface in metres, (s, t) = texture @ (x, y, z, 1); t points up on walls.
        colours: Base colour, RGB.
        materials: ``Material`` codes.
    """

    corners_m: Float[np.ndarray, "t 3 3"]
    texture: Float[np.ndarray, "t 2 4"]
    colours: UInt8[np.ndarray, "t 3"]
    materials: UInt8[np.ndarray, " t"]

    def __len__(self) -> int:
        return len(self.materials)

    @property
    def float32(self) -> "Mesh":
        """The same mesh with coordinates as ``raster`` and ``shading`` want them."""
        return Mesh(self.corners_m.astype(np.float32), self.texture.astype(np.float32), self.colours, self.materials)

    @cached_property
    def normals(self) -> Float[np.ndarray, "t 3"]:
        """Unit normals."""
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

    def cast(
        self, origins_m: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """The nearest hit on each ray: its distance in units of the direction (inf: none), and its triangle (-1)."""
        from open3d.core import Tensor

        rays = np.concatenate([np.broadcast_to(origins_m, directions.shape), directions], axis=1).astype(np.float32)
        hits = self.raycaster.cast_rays(Tensor.from_numpy(rays))
        return hits["t_hit"].numpy(), hits["primitive_ids"].numpy().astype(np.int32)

    def moved(self, dst_SE3_src: Float[np.ndarray, "*t 4 4"]) -> "Mesh":
        """The same mesh in another frame; with a transform for each triangle, each has its own."""
        corners_m, texture = transform(dst_SE3_src, self.corners_m), self.texture @ invert(dst_SE3_src)
        return Mesh(corners_m, texture, self.colours, self.materials)


EMPTY = Mesh(np.empty((0, 3, 3)), np.empty((0, 2, 4)), np.empty((0, 3), np.uint8), np.empty(0, np.uint8))


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many in the same frame; triangles keep their order."""
    return Mesh(
        *(
            np.concatenate([getattr(mesh, name) for mesh in (EMPTY, *meshes)])
            for name in ("corners_m", "texture", "colours", "materials")
        )
    )


def polygons(corners_m: Float[np.ndarray, "n k 3"], colour: Colour, material: Material) -> Mesh:
    """Flat convex polygons of k corners each. Texture: t up on walls and along y on level ones, from their low corner.

    ``colour`` may be one per polygon, too.
    """
    n, k, _ = corners_m.shape
    normals = np.cross(corners_m[:, 1] - corners_m[:, 0], corners_m[:, 2] - corners_m[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    level = np.abs(normals[:, 2]) > 0.9
    along_s = np.cross(np.where(level[:, None], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]), normals)
    along_s /= np.linalg.norm(along_s, axis=1, keepdims=True)
    axes = np.stack([along_s, np.cross(normals, along_s)], axis=1)
    lowest = (axes[:, None] @ corners_m[..., None])[..., 0].min(axis=1)
    texture = np.concatenate([axes, -lowest[..., None]], axis=2)
    fan = np.array([[0, i, i + 1] for i in range(1, k - 1)])
    colours = np.broadcast_to(np.asarray(colour, np.uint8), (n, 3)).repeat(k - 2, axis=0)
    materials = np.full(n * (k - 2), material, np.uint8)
    return Mesh(corners_m[:, fan].reshape(-1, 3, 3), texture.repeat(k - 2, axis=0), colours, materials)


def flanks(bottom_m: Float[np.ndarray, "*n k 3"], top_m: Float[np.ndarray, "*n k 3"]) -> Float[np.ndarray, "*n k 4 3"]:
    """The quadrilaterals between two polygons: low corner i, low corner i + 1, and those above them.

    Seen from outside their corners run counter-clockwise where those of the polygons do, seen from above.
    """
    return np.stack([bottom_m, np.roll(bottom_m, -1, axis=-2), np.roll(top_m, -1, axis=-2), top_m], axis=-2)


def prism(
    bottom_m: Float[np.ndarray, "*n k 3"],
    top_m: Float[np.ndarray, "*n k 3"],
    colour: Colour,
    material: Material,
    closed: bool = True,
) -> Mesh:
    """Solids between pairs of polygons of k corners; sides join equal corners and should be flat.

    ``colour`` may be one per solid, too. Unless ``closed`` the polygons themselves are left out.
    """
    k = bottom_m.shape[-2]
    quads = flanks(bottom_m, top_m).reshape(-1, 4, 3)
    n = len(quads) // k
    colours = np.broadcast_to(np.asarray(colour, np.uint8), (n, 3))
    mesh = polygons(quads, colours.repeat(k, axis=0), material)
    if not closed:
        return mesh
    ends = np.concatenate([bottom_m[..., ::-1, :].reshape(n, k, 3), top_m.reshape(n, k, 3)])
    return merge([mesh, polygons(ends, np.concatenate([colours, colours]), material)])


def loft(sections_m: Float[np.ndarray, "n k 3"], colour: Colour, material: Material) -> Mesh:
    """A solid through n polygons of k corners, closed by the first and the last."""
    ends = np.stack([sections_m[0, ::-1], sections_m[-1]])
    around = prism(sections_m[:-1], sections_m[1:], colour, material, closed=False)
    return merge([around, polygons(ends, colour, material)])


def patches(
    face_m: Float[np.ndarray, "4 3"], spans: Sequence[Sequence[float]], out_m: float = 0.01
) -> Float[np.ndarray, "n 4 3"]:
    """Rectangles on a face, ``out_m`` before it.

    Args:
        face_m: Low left, low right, high right and high left corner, seen from outside.
        spans: Left, right, low and high border of each rectangle, from 0 to 1 across the face.
        out_m: Distance from the face.
    """
    left, right, low, high = np.asarray(spans, np.float64).T
    u = np.stack([left, right, right, left], axis=1)[..., None]
    v = np.stack([low, low, high, high], axis=1)[..., None]
    a, b, c, d = face_m
    normal = np.cross(b - a, d - a)
    return (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * d + u * c) + out_m * normal / np.linalg.norm(normal)


def block(
    size_m: Vectors,
    centre_m: Vectors,
    colour: Colour,
    material: Material,
    taper: tuple[float, float] = (1.0, 1.0),
) -> Mesh:
    """Axis-aligned boxes; ``taper`` scales their top faces in x and y about the centre."""
    size, centre = np.broadcast_arrays(np.asarray(size_m, np.float64), np.asarray(centre_m, np.float64))
    corner = 0.5 * size[..., None, :]
    centre = centre[..., None, :]
    bottom = centre + corner * [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1]]
    top = centre + corner * [*taper, 1] * [[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]
    return prism(bottom, top, colour, material)


def circle(axis: Vectors, corners: int) -> Float[np.ndarray, "*n corners 3"]:
    """Regular polygons of radius 1 around axes."""
    along = np.asarray(axis, np.float64)
    along = along / np.linalg.norm(along, axis=-1, keepdims=True)
    across = np.cross(along, np.where(np.abs(along[..., :1]) < 0.9, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]))
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)[:, None]
    return np.cos(turn) * across[..., None, :] + np.sin(turn) * np.cross(along, across)[..., None, :]


def tube(
    start_m: Vectors,
    end_m: Vectors,
    radius_m: float,
    colour: Colour,
    material: Material,
    sides: int = 6,
    end_radius_m: float | None = None,
    closed: bool = True,
) -> Mesh:
    """Round bars from one point to another; they narrow to ``end_radius_m`` if that is given."""
    start, end = np.broadcast_arrays(np.asarray(start_m, np.float64), np.asarray(end_m, np.float64))
    ring = circle(end - start, sides)
    end_radius_m = radius_m if end_radius_m is None else end_radius_m
    bottom, top = start[..., None, :] + radius_m * ring, end[..., None, :] + end_radius_m * ring
    return prism(bottom, top, colour, material, closed)


def pick(rng: np.random.Generator, palette: Sequence[Sequence[int]], spread: int = 10) -> Int[np.ndarray, "3"]:
    """A colour near one of a palette."""
    colour = np.asarray(palette[rng.integers(len(palette))])
    return np.clip(colour + rng.integers(-spread, spread + 1) + rng.integers(-spread // 2, spread // 2 + 1, 3), 0, 255)
