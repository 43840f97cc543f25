"""A long-lived process that registers for a host (Slicer, a notebook), and what a host needs to talk to it.

`protocol`, `session`, `command`, `transport` and `client` are for the host: the standard library alone, since they
are imported where torch must not be. Everything else runs in the worker.
"""
