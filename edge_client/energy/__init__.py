"""Joules of a device: `meters` reads the sensor a board has, `recorder` samples it, `trace` reads an external one.

`phases` tells a round's joules apart, by a sensor (`tally`) or by the `model`; `budget` counts what may be spent, and
`attributing` lays an external meter's record beside a ledger. A joule always names its source and is never added to one
of another; where nothing measures or models, there is a reason and no number (docs/energy.md).
"""
