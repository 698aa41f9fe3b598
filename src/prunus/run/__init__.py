"""One pruning run from its first look at the model to the finished checkpoint.

It may import every folder but ``cli``.
"""
