"""Measuring variants: accuracy with intervals, latency, throughput, memory and where the time of a forward pass goes.

    from petalite.measure.bench import Variant, benchmark
    from petalite.measure.accuracy import score

    rows = benchmark([Variant("fp32", fp32), Variant("nf4-fa2", nf4, attention="fa2")], batch_sizes=(1, 32))
    score(logits, targets, baseline_logits)["drop_points"]

Nothing is imported here, so that a light part (`statistics`, `environment`) does not pay for the others.
"""
