"""DERP maps: one file for each module of `pyderp.maps`."""
