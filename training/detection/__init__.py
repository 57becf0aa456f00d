"""Keyframes, boxes and scores of the detector."""
