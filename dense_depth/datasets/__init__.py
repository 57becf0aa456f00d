"""Dataset readers: every format becomes the same frozen dataclasses."""

from dense_depth.datasets.base import Box, CameraFrame, Scene, Sweep, Track, open_dataset

__all__ = ["Box", "CameraFrame", "Scene", "Sweep", "Track", "open_dataset"]
