"""Rigid transforms and the pinhole camera.

A transform is a 4x4 float64 array named ``dst_SE3_src``; products read by their names:
``cam_SE3_world @ world_SE3_ego``. Quaternions are wxyz. Camera axes are x right, y down, z forward; depth is z.

The pixel rule, used everywhere: an integer coordinate is the centre of its pixel, so pixel (column c, row r)
covers [c - 0.5, c + 0.5) x [r - 0.5, r + 0.5) and an image of width W covers u in [-0.5, W - 0.5).
"""

import numpy as np
from jaxtyping import Bool, Float, Int

SE3 = Float[np.ndarray, "4 4"]


def se3(rotation: Float[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]) -> SE3:
    """Builds a transform from a rotation matrix and a translation in metres."""
    transform = np.eye(4)
    transform[:3, :3] = rotation
    transform[:3, 3] = translation
    return transform


def invert(dst_SE3_src: Float[np.ndarray, "*batch 4 4"]) -> Float[np.ndarray, "*batch 4 4"]:
    """Inverts rigid transforms: the rotation is transposed, nothing is solved."""
    src_SE3_dst = np.zeros_like(dst_SE3_src)
    rotation_t = np.swapaxes(dst_SE3_src[..., :3, :3], -1, -2)
    src_SE3_dst[..., :3, :3] = rotation_t
    src_SE3_dst[..., :3, 3] = -(rotation_t @ dst_SE3_src[..., :3, 3:])[..., 0]
    src_SE3_dst[..., 3, 3] = 1.0
    return src_SE3_dst


def transform(
    dst_SE3_src: Float[np.ndarray, "*batch 4 4"], points_src: Float[np.ndarray, "*batch n 3"]
) -> Float[np.ndarray, "*batch n 3"]:
    """Takes points from frame src to frame dst."""
    rotation_t = np.swapaxes(dst_SE3_src[..., :3, :3], -1, -2)
    return points_src @ rotation_t + dst_SE3_src[..., None, :3, 3]


def is_rotation(matrix: Float[np.ndarray, "3 3"], tolerance: float = 1e-3) -> bool:
    """Whether a matrix is finite, orthonormal to ``tolerance`` and right-handed."""
    return bool(
        np.isfinite(matrix).all()
        and np.abs(matrix @ matrix.T - np.eye(3)).max() < tolerance
        and np.linalg.det(matrix) > 0
    )


def rotation_from_quaternion(wxyz: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrices of quaternions, which need not have unit norm."""
    w, x, y, z = np.moveaxis(wxyz / np.linalg.norm(wxyz, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def quaternion_from_rotation(rotation: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 4"]:
    """Unit quaternions (w >= 0) of rotation matrices.

    The quaternion is the largest eigenvector of a symmetric 4x4 matrix (Bar-Itzhack, "New method for extracting
    the quaternion from a rotation matrix", 2000), which is stable for every angle.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.moveaxis(rotation, (-2, -1), (0, 1))
    symmetric = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    wxyz = np.linalg.eigh(np.moveaxis(symmetric, (0, 1), (-2, -1)))[1][..., -1]
    return np.where(wxyz[..., :1] < 0, -wxyz, wxyz)


def slerp(
    a: Float[np.ndarray, "*batch 4"], b: Float[np.ndarray, "*batch 4"], alpha: Float[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch 4"]:
    """Quaternions a fraction ``alpha`` of the shorter way from a to b (unit norm), at constant angular velocity.

    ``alpha`` outside [0, 1] extrapolates.
    """
    cosine = (a * b).sum(-1)
    b = np.where(cosine[..., None] < 0, -b, b)
    # atan2 of the chords keeps its accuracy at small angles, where arccos has none.
    angle = 2 * np.arctan2(np.linalg.norm(b - a, axis=-1), np.linalg.norm(b + a, axis=-1))
    sine = np.sin(angle)
    same = sine < 1e-12
    safe = np.where(same, 1.0, sine)
    weight_a = np.where(same, 1 - alpha, np.sin((1 - alpha) * angle) / safe)
    weight_b = np.where(same, alpha, np.sin(alpha * angle) / safe)
    return weight_a[..., None] * a + weight_b[..., None] * b


def interpolate(dst_SE3_a: SE3, dst_SE3_b: SE3, alpha: float) -> SE3:
    """The pose a fraction ``alpha`` of the way from a to b: slerp for rotation, a line for translation.

    ``alpha`` outside [0, 1] extrapolates at constant velocity.
    """
    quaternions = quaternion_from_rotation(np.stack([dst_SE3_a[:3, :3], dst_SE3_b[:3, :3]]))
    wxyz = slerp(quaternions[0], quaternions[1], np.array(alpha))
    translation = (1 - alpha) * dst_SE3_a[:3, 3] + alpha * dst_SE3_b[:3, 3]
    return se3(rotation_from_quaternion(wxyz), translation)


def exp(shift: Float[np.ndarray, "6"]) -> SE3:
    """The transform of a rotation vector and a translation."""
    from scipy.spatial.transform import Rotation

    return se3(Rotation.from_rotvec(shift[:3]).as_matrix(), shift[3:])


def log(dst_SE3_src: SE3) -> Float[np.ndarray, "6"]:
    """The rotation vector and the translation of a transform."""
    from scipy.spatial.transform import Rotation

    return np.concatenate([Rotation.from_matrix(dst_SE3_src[:3, :3]).as_rotvec(), dst_SE3_src[:3, 3]])


def project(
    K: Float[np.ndarray, "3 3"], points_cam: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Projects camera-frame points to (u, v) in pixels and depth in metres.

    Points with depth <= 0 get coordinates that mean nothing; test the depth.
    """
    depth_m = points_cam[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        uv_px = (points_cam @ K[:2].T) / depth_m[:, None]
    return uv_px, depth_m


def unproject(
    K: Float[np.ndarray, "3 3"], uv_px: Float[np.ndarray, "n 2"], depth_m: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3"]:
    """The inverse of ``project``: camera-frame points of pixels with a depth."""
    rays = np.column_stack([uv_px, np.ones(len(uv_px))]) @ np.linalg.inv(K).T
    return rays * depth_m[:, None]


def pixel_of(uv_px: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 2"]:
    """The (column, row) of the pixel that holds each image point: floor(x + 0.5)."""
    return np.floor(uv_px + 0.5).astype(np.int64)


def in_image(
    uv_px: Float[np.ndarray, "n 2"], depth_m: Float[np.ndarray, " n"], width: int, height: int
) -> Bool[np.ndarray, " n"]:
    """Whether image points lie in front of the camera and inside an image of width x height pixels."""
    u, v = uv_px[:, 0], uv_px[:, 1]
    return (depth_m > 0) & (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)


def resize_K(K: Float[np.ndarray, "3 3"], scale_x: float, scale_y: float) -> Float[np.ndarray, "3 3"]:
    """Intrinsics of the image after resizing by (scale_x, scale_y).

    Pixel borders scale, not pixel centres: u' + 0.5 = scale * (u + 0.5).
    """
    resized = K.copy()
    resized[0] *= scale_x
    resized[1] *= scale_y
    resized[0, 2] += 0.5 * scale_x - 0.5
    resized[1, 2] += 0.5 * scale_y - 0.5
    return resized
