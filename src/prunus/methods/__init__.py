"""The table of methods, and what turns a name and settings into a composition of parts.

It may import ``maths`` and ``base``.
"""
