"""Everything on disk: checkpoints in all formats, the journal, orders, widths, packed integers.

It may import ``report``, ``model``, ``maths`` and ``base``.
"""
