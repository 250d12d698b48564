"""What is run to learn, not to serve: fleets on one machine, faults, reports and benchmarks.

The only package that may import every role; it starts them as the processes they are in the field.
"""
