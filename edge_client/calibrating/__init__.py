"""`fedpruneshare device calibrate`: what this device can do, measured."""
