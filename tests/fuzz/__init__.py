"""Fuzz targets, one for each parser. They see the sources, whose coverage guides them."""

import freeapi

freeapi.take_sources()
