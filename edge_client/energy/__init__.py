"""Joules of a device: what measures them, and what was measured in each phase of a round.

`meters` reads the sensor a board has, `recorder` samples it while the device works. A joule always names its source;
where nothing measures, there is a reason and no number.
"""
