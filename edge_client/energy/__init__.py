"""Joules of a device: `meters` reads the sensor a board has, `recorder` samples it, `trace` reads an external one.

A joule always names its source; where nothing measures, there is a reason and no number.
"""
