"""What lies on disk: checkpoints in every form, the journal, orders, widths, packed integers.

It may import ``report``, ``model``, ``maths`` and ``base``.
"""
