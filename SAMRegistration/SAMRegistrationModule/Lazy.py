"""Modules that are loaded when they are first used, so that starting Slicer does not wait for them."""

import importlib


class LazyModule:
    """Stands for a module and becomes it at the first use of one of its names."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str):
        return getattr(importlib.import_module(self._name), attribute)


numpy = LazyModule("numpy")
numpySupport = LazyModule("vtk.util.numpy_support")
