"""Measuring: time, likeness to a reference, and whether a clip shows what its prompt asks for."""
