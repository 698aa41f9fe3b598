"""The mathematics of the papers: pure functions of tensors, and dataclasses of their settings.

It imports torch, scipy and ``base`` alone: never transformers, a file or a module of a model. So
every part can be tried on plain matrices in a notebook.
"""
