"""Depth bins, targets and loss."""
