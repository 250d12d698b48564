"""Everything that is on a device's or broker's disk before its first boot: profiles, broker configurations, units.

A package, so that the wheel ships the data and the testbed runs the same files that are deployed.
"""
