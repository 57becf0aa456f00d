"""Where the cells of the depth frustums lie: from pixels and depths to points in the key ego frame."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Cameras(NamedTuple):
    """Calibration of the images of a batch: B samples, N cameras.

    Attributes:
        K: Intrinsics of the image as it was recorded, or resized before any augmentation; (B, N, 3, 3).
        image_T_recorded: Pixels of the network's input from pixels of that image, homogeneous; (B, N, 3, 3).
        ego_SE3_cam: Key ego frame from the camera at its own time; (B, N, 4, 4).
        bev_T_ego: Augmentation of the ego frame: rotation, scale, mirror; (B, 3, 3).
    """

    K: Float[Tensor, "b n 3 3"]
    image_T_recorded: Float[Tensor, "b n 3 3"]
    ego_SE3_cam: Float[Tensor, "b n 4 4"]
    bev_T_ego: Float[Tensor, "b 3 3"]


def cell_pixels(
    height: int, width: int, stride: int, parity: bool = False
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " columns"]]:
    """Pixel coordinates of the cells' centres; with ``parity`` BEVDepth's, which spread from border to border."""
    rows, columns = height // stride, width // stride
    if parity:
        return torch.linspace(0, height - 1, rows), torch.linspace(0, width - 1, columns)
    v_px, u_px = ((torch.arange(n) + 0.5) * stride - 0.5 for n in (rows, columns))
    return v_px, u_px


def frustum_points(
    cameras: Cameras,
    depths_m: Float[Tensor, " bins"],
    v_px: Float[Tensor, " rows"],
    u_px: Float[Tensor, " columns"],
) -> Float[Tensor, "b n bins rows columns 3"]:
    """Points of every cell at every depth, in the augmented key ego frame, metres.

    Composed in float64: coordinates of pixels and of metres differ by orders of magnitude.

    Args:
        cameras: The calibration.
        depths_m: z-depths of the bins.
        v_px: Rows of the cells in the network's input.
        u_px: Columns of the cells.
    """
    K, image_T_recorded, ego_SE3_cam, bev_T_ego = (x.double() for x in cameras)
    v, u = torch.meshgrid(v_px.to(K), u_px.to(K), indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    cam_T_pixel = torch.linalg.inv(image_T_recorded @ K)
    bev_T_cam = bev_T_ego[:, None] @ ego_SE3_cam[..., :3, :3]
    origin = (bev_T_ego[:, None] @ ego_SE3_cam[..., :3, 3:])[..., 0]
    rays = torch.einsum("bnij,hwj->bnhwi", bev_T_cam @ cam_T_pixel, pixels)  # per metre of depth
    points = rays[:, :, None] * depths_m.to(K)[:, None, None, None] + origin[:, :, None, None, None]
    return points.float()
