"""What came of a run: verification, perplexity, speed, simulated cycles.

It may import every folder but ``run`` and ``cli``.
"""
