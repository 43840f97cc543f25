"""Slicer without its application, for tests: real MRML (package slicer-core) and stand-ins for its GUI on PySide6.

What passes here has not been run in Slicer.
"""
