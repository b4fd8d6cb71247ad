"""The anatomy of a forward pass: time by kind, layer and kernel, against what the device can do; memory; energy.

    from petalite.profiling.run import dissect
    found = dissect(Variant("int8", Path("runs/demo/checkpoints/int8")), batch_size=1)
    found["anatomy"]["kinds"]         # [{"kind": "products", "ms": 3.1, "share": 0.56}, …, {"kind": "gaps", …}]
    found["anatomy"]["check"]         # the parts and the gaps against the time without a profiler

A study keeps the contract's `kernels` block (`petalite.measure.kernels`); this room takes one variant apart.
"""
