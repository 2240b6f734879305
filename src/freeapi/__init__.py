"""chatgpt-freeapi: a proxy that shares an operator's OpenAI keys, within limits and in private.

This module holds the version and nothing else: the package is run (``freeapi serve``), not
imported, so there is no public Python API to export. Where to start reading: ``cli`` builds the
objects, ``proxy`` is the life of one request.

Invariant: importing ``freeapi`` imports no other module, so that the version is free to ask for.
"""

__version__ = "0.1.0"
