"""Boxes of 3-D object detection: their type and classes, training targets, and decoding of the head's output."""
