"""How a model is built: its blocks, layers, sites, heads and neurons, found by structure.

It runs and changes modules in memory. It may import ``maths`` and ``base``.
"""
