"""Colours of pixels: procedural textures, sunlight with shadows, haze and sky. A picture, not a measurement."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
from jaxtyping import Float, UInt8

from dense_depth.geometry import SE3
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Mesh
from dense_depth.synthetic.raster import Canvas, draw_heights

TILE = 256  # pixels per side of the noise tile, a power of two
LAST = TILE - 1
STOREY_M, BAY_M = 3.1, 2.6  # of a wall, with a window each
BELOW_M = 1.5  # walls, whose texture counts from below, start so far below the ground
SHADOW_PITCH_M, SHADOW_BIAS_M = 0.1, 0.12
HAZE_M, HAZE = 300.0, (205, 214, 224)  # contrast falls to half over this distance; towards this colour


@dataclass(frozen=True)
class Light:
    """Sun and sky of a scene.

    Attributes:
        to_sun: Unit vector in the world.
        sun: Brightness of full sunlight on a white surface.
        ambient: Brightness of skylight on it.
        clouds: Share of cloud in the sky, 0 to 1.
    """

    to_sun: Float[np.ndarray, "3"]
    sun: float
    ambient: float
    clouds: float


@dataclass(frozen=True)
class Marks:
    """What is painted on the street, by its texture coordinates: s along the street, t to the left of its middle."""

    road_m: float  # half the width of the road
    lane_m: float  # from the middle to the line that parts the lane from the parked cars
    pavement_m: float  # from the middle to the end of the pavement
    crossings_m: Float[np.ndarray, " crossings"]  # s of the middles of crossing streets
    crossing_road_m: float  # half their width

    def as_array(self) -> Float[np.ndarray, " numbers"]:
        """For compiled code."""
        head = [self.road_m, self.lane_m, self.pavement_m, self.crossing_road_m]
        return np.array([*head, *self.crossings_m], np.float32)


class ShadowMap:
    """Heights of surfaces towards the sun, over a grid across its rays."""

    def __init__(self, light: Light, low_m: Float[np.ndarray, "3"], high_m: Float[np.ndarray, "3"]) -> None:
        """Covers the world between two corners."""
        self.light = light
        east = np.cross([0.0, 1.0, 0.0], light.to_sun)
        axes = np.stack(
            [east / np.linalg.norm(east), np.cross(light.to_sun, east / np.linalg.norm(east)), light.to_sun]
        )
        corners = np.array([[(low_m, high_m)[i >> k & 1][k] for k in range(3)] for i in range(8)])
        along = corners @ axes.T
        offset = -along.min(axis=0)
        columns, rows = np.ceil(np.ptp(along, axis=0)[:2] / SHADOW_PITCH_M).astype(int)
        scale = np.array([1 / SHADOW_PITCH_M, 1 / SHADOW_PITCH_M, 1.0])
        self.map_T_world = np.column_stack([axes, offset]) * scale[:, None]
        self.heights = np.full((rows, columns), -1e9, np.float32)

    def draw(self, corners_m: Float[np.ndarray, "t 3 3"]) -> None:
        """Adds triangles in the world frame, float32."""
        draw_heights(corners_m, self.map_T_world, self.heights)

    def with_movers(self, corners_m: Float[np.ndarray, "t 3 3"]) -> "ShadowMap":
        """A copy with more triangles."""
        other = object.__new__(ShadowMap)
        other.light, other.map_T_world, other.heights = self.light, self.map_T_world, self.heights.copy()
        other.draw(corners_m)
        return other


@cache
def noise_tile() -> Float[np.ndarray, "rows columns"]:
    """Smooth noise with zero mean and unit deviation that repeats without a seam."""
    rng = np.random.default_rng(0)
    fy, fx = np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE), indexing="ij")
    frequency = np.hypot(fx, fy) * TILE
    spectrum = np.fft.fft2(rng.standard_normal((TILE, TILE))) * np.exp(-((frequency / 48) ** 2)) / (4 + frequency)
    tile = np.real(np.fft.ifft2(spectrum))
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


def shade(
    canvas: Canvas,
    mesh: Mesh,
    world_SE3_cam: SE3,
    K: Float[np.ndarray, "3 3"],
    shadows: ShadowMap,
    marks: Marks,
) -> UInt8[np.ndarray, "height width 3"]:
    """The image of what a canvas shows, RGB.

    Args:
        canvas: The mesh, drawn.
        mesh: World frame; float32 arrays.
        world_SE3_cam: Pose of the camera.
        K: Intrinsics.
        shadows: Drawn with the same mesh, under the sun and sky that light it.
        marks: What is painted on the street.
    """
    out, light = np.empty((*canvas.triangle.shape, 3), np.uint8), shadows.light
    _shade(
        canvas.triangle,
        canvas.inverse_depth,
        mesh.texture,
        mesh.corners_m,
        mesh.colours,
        mesh.materials,
        world_SE3_cam.astype(np.float32),
        K.astype(np.float32),
        light.to_sun.astype(np.float32),
        np.float32(light.sun),
        np.float32(light.ambient),
        np.float32(light.clouds),
        shadows.map_T_world.astype(np.float32),
        shadows.heights,
        marks.as_array(),
        noise_tile(),
        out,
    )
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _noise(tile, x, y):  # type: ignore[no-untyped-def]
    """Bilinear noise; one unit of x and y is a pixel of the tile."""
    fx, fy = np.floor(x), np.floor(y)
    a, b = np.float32(x - fx), np.float32(y - fy)
    i, j = np.int64(fx) & LAST, np.int64(fy) & LAST
    k, m = (i + 1) & LAST, (j + 1) & LAST
    one = np.float32(1.0)
    return (tile[j, i] * (one - a) + tile[j, k] * a) * (one - b) + (tile[m, i] * (one - a) + tile[m, k] * a) * b


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grain(tile, s, t, per_m, footprint):  # type: ignore[no-untyped-def]
    """Noise of so many tile pixels per metre, which fades out where it is finer than the image."""
    strength = np.float32(0.9) / (per_m * footprint)
    if strength < 0.1:
        return np.float32(0.0)
    return _noise(tile, s * per_m, t * per_m) * min(np.float32(1.0), strength)


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _hash(i, j):  # type: ignore[no-untyped-def]
    """A number in [0, 1) from two integers."""
    h = np.uint32(i) * np.uint32(374761393) + np.uint32(j) * np.uint32(668265263)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    return np.float32((h ^ (h >> np.uint32(16))) & np.uint32(0xFFFF)) / np.float32(65536.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sky(tile, x, y, z, to_sun, clouds):  # type: ignore[no-untyped-def]
    """Colour of the sky in a unit direction."""
    up = max(z, np.float32(0.0))
    blend = np.float32(1.0) - (np.float32(1.0) - up) ** 3
    r, g, b = 214 - 130 * blend, 224 - 90 * blend, 235 - 28 * blend
    glow = max(x * to_sun[0] + y * to_sun[1] + z * to_sun[2], np.float32(0.0)) ** 24
    if up > 0.01 and clouds > 0:
        spread = np.float32(14.0) / (up + np.float32(0.12))
        cover = _noise(tile, x * spread, y * spread) + np.float32(0.4) * _noise(tile, x * spread * 4, y * spread * 4)
        cover = min(max(np.float32(0.5) * cover + clouds - np.float32(0.3), np.float32(0.0)), np.float32(0.9))
        cover *= min(up * np.float32(8.0), np.float32(1.0))
        r, g, b = r + (238 - r) * cover, g + (240 - g) * cover, b + (243 - b) * cover
    return r + (255 - r) * glow, g + (250 - g) * glow, b + (230 - b) * glow


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _open_to_sun(heights, u, v, h):  # type: ignore[no-untyped-def]
    """Share of sunlight at a place of a shadow map, smooth between its pixels; full beyond its borders."""
    i, j = np.int64(np.floor(u)), np.int64(np.floor(v))
    if i < 0 or j < 0 or i + 1 >= heights.shape[1] or j + 1 >= heights.shape[0]:
        return np.float32(1.0)
    a, b, one = np.float32(u - i), np.float32(v - j), np.float32(1.0)
    low = (heights[j, i] <= h) * (one - a) + (heights[j, i + 1] <= h) * a
    high = (heights[j + 1, i] <= h) * (one - a) + (heights[j + 1, i + 1] <= h) * a
    return np.float32(low * (one - b) + high * b)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _street(tile, s, t, footprint, marks):  # type: ignore[no-untyped-def]
    """Albedo of the ground: asphalt with markings, pavement, grass."""
    road, lane, pavement, crossing_road = marks[0], marks[1], marks[2], marks[3]
    across, along = abs(t), np.float32(1e9)  # distances from the middle of this street and of the nearest crossing one
    for k in range(4, len(marks)):
        along = min(along, abs(s - marks[k]))
    broad = _noise(tile, s * np.float32(1.3), t * np.float32(1.3))
    fine = _grain(tile, s, t, np.float32(150.0), footprint)
    on_road, on_crossing = across < road, along < crossing_road
    if on_road or on_crossing:
        tone = 94 + 3 * broad + 6 * fine
        wheel = abs(abs(across - np.float32(2.4)) - np.float32(0.8))  # worn by wheels
        if on_road and wheel < 0.3:
            tone += 5
        if footprint < 0.05:
            tone -= 14 * (_noise(tile, s * 9 + 77, t * 9) > 2.3)  # patched
            tone -= 22 * (abs(_noise(tile, s * 5 + 31, t * 5 + 7)) < 0.012)  # cracks
        paint: Any = False
        if on_road and not on_crossing:
            clear = along > crossing_road + 5
            paint |= clear and across < 0.08 and s % 6 < 3  # middle
            paint |= clear and abs(across - lane) < 0.06 and s % 3 < 1.6  # parking
            paint |= across > road - 0.18 and across < road - 0.06
            zebra = along > crossing_road + 0.8 and along < crossing_road + 3.8
            paint |= zebra and across < road - 0.5 and t % 1.0 < 0.5
            paint |= abs(along - crossing_road - 4.6) < 0.2 and (s - marks[4]) * t > 0 and across < lane
        elif on_crossing and not on_road:
            paint |= along < 0.08 and t % 6 < 3 and across > road + 4
            paint |= across > road + 0.8 and across < road + 3.8 and s % 1.0 < 0.5 and along < crossing_road - 0.4
        if paint and _noise(tile, s * 25, t * 25 + 100) < 1.6:  # worn off in places
            return 205 + 10 * fine, 205 + 10 * fine, 200 + 10 * fine
        return tone, tone, tone + 3
    side = across < pavement
    if along - crossing_road < pavement - road:
        side = True
    if side:
        edge = min(
            across - road if across >= road else np.float32(1e9),
            along - crossing_road if along >= crossing_road else np.float32(1e9),
        )
        if edge < 0.18:  # kerb stones
            tone = 168 + 6 * broad + (-20 if (s % 1.0 < 0.03 or t % 1.0 < 0.03) and footprint < 0.03 else 0)
            return tone, tone, tone - 4
        i, j = np.int64(np.floor(s / np.float32(0.6))), np.int64(np.floor(t / np.float32(0.6)))
        tone = 138 + 12 * (_hash(i, j) - np.float32(0.5)) + 5 * broad + 8 * fine
        if footprint < 0.04 and (s % 0.6 < 0.025 or t % 0.6 < 0.025):
            tone -= 32
        return tone + 4, tone, tone - 6
    tone = 8 * broad + 16 * fine
    dry = min(max(_noise(tile, s * 2 + 50, t * 2), np.float32(-1.0)), np.float32(1.0))
    return 92 + 14 * dry + tone, 112 + tone, 62 + tone * np.float32(0.7)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _wall(tile, r, g, b, s, t, footprint, brick, sky_r, sky_g, sky_b):  # type: ignore[no-untyped-def]
    """Albedo of a house: rows of windows in plaster or brick; the ground floor has larger ones."""
    storey, bay = np.float32(STOREY_M), np.float32(BAY_M)
    t = t - np.float32(BELOW_M)
    i, j = np.int64(np.floor(s / bay)), np.int64(np.floor(t / storey))
    x, y = s - bay * i - bay / 2, t - storey * j
    wide, low, high = np.float32(0.62), np.float32(0.95), np.float32(2.5)
    if j == 0:
        wide, low = np.float32(0.95), np.float32(0.6)
    inside = min(wide - abs(x), min(y - low, high - y))  # distance into the window
    if t > 0 and inside > -0.12:
        if inside < 0.07 or (abs(x) < 0.035 and footprint < 0.05):
            return np.float32(218), np.float32(216), np.float32(210)  # frame
        dim = np.float32(0.35) + np.float32(0.3) * _hash(i + 7, j + 3)
        if _hash(i, j) < 0.35 and y > np.float32(1.2) + _hash(j, i):  # curtain
            return np.float32(170), np.float32(164), np.float32(150)
        wave = np.float32(6.0) * _noise(tile, s * 6, t * 6)
        return (
            30 + sky_r * dim * np.float32(0.6) + wave,
            36 + sky_g * dim * np.float32(0.6) + wave,
            44 + sky_b * dim * np.float32(0.62) + wave,
        )
    if t > 0 and inside > -0.22 and y < low:  # sill
        return np.float32(176), np.float32(172), np.float32(166)
    tone = np.float32(1.0) + np.float32(0.05) * _noise(tile, s * 4, t * 4)
    tone -= (
        np.float32(0.10)
        * max(np.float32(0.0), _noise(tile, s * 12, t * 2))
        * max(np.float32(0.0), np.float32(1.0) - t / 4)
    )
    if brick:
        course = np.int64(np.floor(t / np.float32(0.085)))
        shift = np.float32(0.125) * (course & 1)
        place = np.int64(np.floor((s + shift) / np.float32(0.25)))
        fade = min(np.float32(1.0), np.float32(0.02) / footprint)
        tone += np.float32(0.25) * (_hash(place, course) - np.float32(0.5)) * fade
        if footprint < 0.02 and (t % 0.085 < 0.014 or (s + shift) % 0.25 < 0.014):
            return 180 * tone, 174 * tone, 166 * tone
    else:
        tone += np.float32(0.04) * _noise(tile, s * 50, t * 50) * min(np.float32(1.0), np.float32(0.02) / footprint)
    return r * tone, g * tone, b * tone


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _shade(  # type: ignore[no-untyped-def]
    triangle,
    inverse_depth,
    texture,
    corners,
    colours,
    materials,
    pose,
    K,
    to_sun,
    sun,
    ambient,
    clouds,
    map_T_world,
    heights,
    marks,
    tile,
    out,
):
    zero, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    rows, columns = triangle.shape
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    per_focal = one / fx
    M = map_T_world
    for row in range(rows):
        for column in range(columns):
            rx, ry = (np.float32(column) - cx) * per_focal, (np.float32(row) - cy) / fy
            length = np.sqrt(rx * rx + ry * ry + one)
            unit = one / length
            dx = (pose[0, 0] * rx + pose[0, 1] * ry + pose[0, 2]) * unit
            dy = (pose[1, 0] * rx + pose[1, 1] * ry + pose[1, 2]) * unit
            dz = (pose[2, 0] * rx + pose[2, 1] * ry + pose[2, 2]) * unit
            which = triangle[row, column]
            if which < 0:
                r, g, b = _sky(tile, dx, dy, dz, to_sun, clouds)
                out[row, column, 0], out[row, column, 1], out[row, column, 2] = min(r, 255), min(g, 255), min(b, 255)
                continue
            depth = one / inverse_depth[row, column]
            distance, footprint = length * depth, depth * per_focal  # footprint: metres per pixel
            x, y, z = pose[0, 3] + distance * dx, pose[1, 3] + distance * dy, pose[2, 3] + distance * dz
            U = texture[which]
            s = U[0, 0] * x + U[0, 1] * y + U[0, 2] * z + U[0, 3]
            t = U[1, 0] * x + U[1, 1] * y + U[1, 2] * z + U[1, 3]
            C = corners[which]
            ax, ay, az = C[1, 0] - C[0, 0], C[1, 1] - C[0, 1], C[1, 2] - C[0, 2]
            bx, by, bz = C[2, 0] - C[0, 0], C[2, 1] - C[0, 1], C[2, 2] - C[0, 2]
            nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
            unit = one / np.sqrt(nx * nx + ny * ny + nz * nz)
            nx, ny, nz = nx * unit, ny * unit, nz * unit
            facing = nx * dx + ny * dy + nz * dz
            if facing > 0:
                nx, ny, nz, facing = -nx, -ny, -nz, -facing
            r, g, b = np.float32(colours[which, 0]), np.float32(colours[which, 1]), np.float32(colours[which, 2])
            material = materials[which]

            mirror_r = mirror_g = mirror_b = zero
            if material in (Material.GLASS, Material.PAINT, Material.FACADE, Material.BRICK, Material.METAL):
                mx, my, mz = dx - 2 * facing * nx, dy - 2 * facing * ny, dz - 2 * facing * nz
                if mz > 0.05:
                    mirror_r, mirror_g, mirror_b = _sky(tile, mx, my, mz, to_sun, zero)
                else:
                    mirror_r, mirror_g, mirror_b = np.float32(96), np.float32(94), np.float32(92)
            fade = min(one, np.float32(0.015) / footprint)
            if material == Material.STREET:
                r, g, b = _street(tile, s, t, footprint, marks)
            elif material in (Material.FACADE, Material.BRICK):
                r, g, b = _wall(
                    tile, r, g, b, s, t, footprint, material == Material.BRICK, mirror_r, mirror_g, mirror_b
                )
            elif material in (Material.CONCRETE, Material.BARK, Material.RUBBER):
                tone = (
                    one
                    + np.float32(0.07) * _noise(tile, s * 20, t * 8)
                    + np.float32(0.08) * fade * _noise(tile, s * 90, t * 40)
                )
                r, g, b = r * tone, g * tone, b * tone
            elif material == Material.ROOF:
                tone = (
                    one
                    + np.float32(0.06) * _noise(tile, s * 8, t * 8)
                    + np.float32(0.1)
                    * (_hash(np.int64(s / np.float32(0.25)), np.int64(t / np.float32(0.3))) - half)
                    * fade
                )
                if t % np.float32(0.3) < 0.05:
                    tone -= np.float32(0.25) * fade
                r, g, b = r * tone, g * tone, b * tone
            elif material == Material.WOOD:
                tone = one + np.float32(0.12) * _noise(tile, s * 60, t * 5) * fade
                r, g, b = r * tone, g * tone, b * tone
            elif material == Material.FOLIAGE:
                tone = np.float32(0.85) + np.float32(0.25) * _noise(tile, s * 90 + which * 17, t * 90) * fade
                tone += np.float32(0.35) * (_hash(which, 5) - half)
                r, g, b = r * tone, g * tone, b * tone
            elif material == Material.CLOTH:
                tone = (
                    one
                    + np.float32(0.08) * _noise(tile, s * 40, t * 15)
                    + np.float32(0.05) * _noise(tile, s * 120, t * 120) * fade
                )
                r, g, b = r * tone, g * tone, b * tone
            elif material == Material.SIGN and (t * 6) % 1 < 0.25 and footprint < 0.02:
                r, g, b = r * half, g * half, b * half
            elif material == Material.STRIPES and (s + t) % np.float32(0.3) < 0.15:
                r, g, b = np.float32(232), np.float32(230), np.float32(226)
            if material in (Material.PAINT, Material.GLASS, Material.METAL):
                grazing = (one + facing) ** 3
                share = np.float32(0.12) + np.float32(0.5) * grazing
                if material == Material.GLASS:
                    r, g, b = r * half, g * half, b * half
                    share = np.float32(0.30) + np.float32(0.6) * grazing
                r, g, b = r + (mirror_r - r) * share, g + (mirror_g - g) * share, b + (mirror_b - b) * share

            # Sunlight where nothing lies between here and the sun, skylight by how much of the sky is above.
            shine = nx * to_sun[0] + ny * to_sun[1] + nz * to_sun[2]
            if material == Material.FOLIAGE:  # leaves scatter what falls on either side
                shine = np.float32(0.35) + np.float32(0.5) * abs(shine)
            lit = max(shine, zero)
            if lit > 0:
                px, py, pz = x + nx * np.float32(0.05), y + ny * np.float32(0.05), z + nz * np.float32(0.05)
                u = M[0, 0] * px + M[0, 1] * py + M[0, 2] * pz + M[0, 3]
                v = M[1, 0] * px + M[1, 1] * py + M[1, 2] * pz + M[1, 3]
                h = M[2, 0] * px + M[2, 1] * py + M[2, 2] * pz + M[2, 3] + np.float32(SHADOW_BIAS_M)
                open_to_sun = _open_to_sun(heights, u, v, h)
                if material == Material.FOLIAGE:
                    open_to_sun = np.float32(0.25) + np.float32(0.75) * open_to_sun
                lit *= open_to_sun
            level = ambient * (np.float32(0.7) + np.float32(0.3) * nz) + sun * lit
            if material == Material.LAMP:
                level = np.float32(1.25)
            # The shaded side is bluish, the sunny one warm.
            warm = np.float32(0.05) * min(lit * 2, one)
            r, g, b = r * level * (one + warm), g * level, b * level * (np.float32(1.06) - 2 * warm)
            clear = one / (one + distance * np.float32(1 / HAZE_M))
            r, g, b = HAZE[0] + (r - HAZE[0]) * clear, HAZE[1] + (g - HAZE[1]) * clear, HAZE[2] + (b - HAZE[2]) * clear
            out[row, column, 0] = np.uint8(min(max(r, zero), np.float32(255)))
            out[row, column, 1] = np.uint8(min(max(g, zero), np.float32(255)))
            out[row, column, 2] = np.uint8(min(max(b, zero), np.float32(255)))
