"""Profiles of boards, one TOML file each: what a board is before anything has been measured on it.

`edge_client.board.profiles` reads them; docs/boards.md shows them as a table. Every figure says where it comes from.
The word "estimate" marks those that nobody measured, with what they were derived from; `fedpruneshare device calibrate`
replaces them by measurements.
"""
