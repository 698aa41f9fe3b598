"""Judge what a run made: verification, perplexity, speed, simulated cycles.

It may import every folder but ``run`` and ``cli``.
"""
