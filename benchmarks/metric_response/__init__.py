"""Whether scores answer to damage: real samples, damaged more and more, scored against clean ones.

``python -m benchmarks.metric_response all --out docs/results``
"""
