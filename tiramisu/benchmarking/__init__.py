"""Measuring speed against the textbook implementation."""
