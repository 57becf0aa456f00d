"""Trainers. They never import ray."""
