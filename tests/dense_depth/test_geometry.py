"""Geometry against scipy and against exact arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from dense_depth import geometry

SEEDS = st.integers(0, 2**32 - 1)


def random_pose(rng: np.random.Generator) -> np.ndarray:
    return geometry.se3(Rotation.random(random_state=rng).as_matrix(), rng.normal(size=3) * 1000)


def wxyz(rotation: Rotation) -> np.ndarray:
    return rotation.as_quat()[..., [3, 0, 1, 2]]


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_invert_and_transform(seed):
    rng = np.random.default_rng(seed)
    a_SE3_b = random_pose(rng)
    np.testing.assert_allclose(geometry.invert(a_SE3_b), np.linalg.inv(a_SE3_b), atol=1e-9)
    points_b = rng.normal(size=(5, 3))
    expected = (a_SE3_b @ np.column_stack([points_b, np.ones(5)]).T)[:3].T
    np.testing.assert_allclose(geometry.transform(a_SE3_b, points_b), expected, atol=1e-9)
    stack = np.stack([a_SE3_b, np.eye(4)])
    np.testing.assert_allclose(geometry.invert(stack)[0], np.linalg.inv(a_SE3_b), atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_quaternions_agree_with_scipy(seed):
    rotation = Rotation.random(random_state=np.random.default_rng(seed))
    np.testing.assert_allclose(geometry.rotation_from_quaternion(3 * wxyz(rotation)), rotation.as_matrix(), atol=1e-12)
    ours = geometry.quaternion_from_rotation(rotation.as_matrix())
    assert ours[0] >= 0
    np.testing.assert_allclose(abs(ours @ wxyz(rotation)), 1, atol=1e-12)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_have_quaternions(axis):
    rotation = Rotation.from_rotvec(np.pi * np.eye(3)[axis])
    ours = geometry.quaternion_from_rotation(rotation.as_matrix())
    np.testing.assert_allclose(abs(ours @ wxyz(rotation)), 1, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.floats(0, 1))
def test_interpolate_agrees_with_scipy_slerp(seed, alpha):
    rng = np.random.default_rng(seed)
    a, b = random_pose(rng), random_pose(rng)
    ours = geometry.interpolate(a, b, alpha)
    slerp = Slerp([0, 1], Rotation.from_matrix([a[:3, :3], b[:3, :3]]))
    np.testing.assert_allclose(ours[:3, :3], slerp(alpha).as_matrix(), atol=1e-9)
    np.testing.assert_allclose(ours[:3, 3], (1 - alpha) * a[:3, 3] + alpha * b[:3, 3], atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-5, 0.1, 3.1])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 1.0, 1.5])
def test_slerp_turns_at_constant_speed_at_every_angle_and_beyond_the_ends(angle, alpha):
    axis = np.array([1.0, 2.0, -2.0]) / 3
    a, b = np.eye(4), geometry.se3(Rotation.from_rotvec(angle * axis).as_matrix(), np.zeros(3))
    expected = Rotation.from_rotvec(alpha * angle * axis).as_matrix()
    np.testing.assert_allclose(geometry.interpolate(a, b, alpha)[:3, :3], expected, atol=1e-12)


def test_is_rotation_refuses_mirrors_and_scale():
    assert geometry.is_rotation(np.eye(3))
    assert not geometry.is_rotation(np.diag([1.0, 1.0, -1.0]))
    assert not geometry.is_rotation(1.01 * np.eye(3))
    assert not geometry.is_rotation(np.full((3, 3), np.nan))


K = np.array([[1000.0, 0, 799.5], [0, 1100.0, 449.5], [0, 0, 1]])


def test_project_by_hand():
    uv, depth = geometry.project(K, np.array([[1.0, 2.0, 10.0]]))
    np.testing.assert_allclose(uv, [[899.5, 669.5]])
    np.testing.assert_allclose(depth, [10.0])
    np.testing.assert_allclose(geometry.unproject(K, uv, depth), [[1.0, 2.0, 10.0]])


def test_pixel_rule_at_the_borders():
    u = np.array([-0.5, -0.50001, 0.49999, 0.5, 3.49999, 3.5])
    uv = np.column_stack([u, np.zeros(6)])
    assert geometry.pixel_of(uv)[:, 0].tolist() == [0, -1, 0, 1, 3, 4]
    inside = geometry.in_image(uv, np.ones(6), width=4, height=1)
    assert inside.tolist() == [True, False, True, True, True, False]
    assert not geometry.in_image(uv, -np.ones(6), width=4, height=1).any()


@pytest.mark.parametrize("scale", [0.5, 0.25, 1 / 3, 2.0])
def test_resize_keeps_pixel_borders(scale):
    """A ray through the left border of the image still does, and so for the right one."""
    resized = geometry.resize_K(K, scale, scale)
    for border in (-0.5, 1599.5):
        ray = geometry.unproject(K, np.array([[border, 449.5]]), np.array([1.0]))
        u = geometry.project(resized, ray)[0][0, 0]
        assert u == pytest.approx(-0.5 if border < 0 else 1600 * scale - 0.5)


def test_resize_agrees_with_opencv():
    """A gradient image resized by OpenCV holds, at each pixel, the coordinate that resize_K says."""
    import cv2

    ramp = np.tile(np.arange(1600, dtype=np.float32), (4, 1))
    shrunk = cv2.resize(ramp, (400, 1), interpolation=cv2.INTER_AREA)[0]
    resized = geometry.resize_K(K, 0.25, 0.25)
    rays = geometry.unproject(resized, np.column_stack([np.arange(400.0), np.zeros(400)]), np.ones(400))
    np.testing.assert_allclose(geometry.project(K, rays)[0][:, 0], shrunk, atol=1e-3)
