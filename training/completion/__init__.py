"""Trains the completion network."""
