"""Devices that take part in rounds and train nothing, so that one machine drives thousands (docs/large-fleets.md).

Keys, seals, signatures, shares, receipts, links and brokers are the product's own; the values are random. No torch.
"""
