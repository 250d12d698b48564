"""The coordinator: it plans rounds, opens sums and publishes the next model.

It sees sums over at least `min_devices` devices and never one device's update (docs/protocol.md §4). Models are scored
with onnxruntime, so nothing here needs torch.
"""
