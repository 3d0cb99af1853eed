"""Measuring: time, likeness to a reference, steadiness, and whether a clip shows what its prompt asks for."""
