"""Depth completion: fills the pixels of a label that no sweep saw."""
