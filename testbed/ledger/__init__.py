"""What a run cost: written as it happens, put together at the end, and held against other counts (docs/measuring.md).

`rounds` and `device_lines` are the lines of rounds.jsonl and devices.jsonl, `device_book` and `journal` read and write
them while a run goes on, `agreement` compares the books, `framing` says what headers explain.
"""
