"""How well a text-to-motion run does what it is told: prompts of three kinds, read by classifiers of real motions.

``python -m benchmarks.text_to_motion RUN --out docs/results`` draws samples of every prompt of ``prompts.yaml``,
writes an animation of the first of each kind, and ``text-to-motion.json``.
"""
