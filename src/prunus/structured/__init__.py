"""Whole heads and neurons: scores, recovery, and the surgery that makes the model smaller.

A depth-2 module is what lies between two reads of the residual stream: first-level layers (q, k, v;
gate, up) and one second-level layer (o; down). Removing a unit from the inside of it (a neuron, a
key/value group of heads) touches nothing outside. (Li et al. 2024, arXiv:2407.19126, section 3.1.)

Words of this folder, beside those of the design: **unit** (a neuron or a group of heads: what goes
or stays as a whole) · **first level / second level** (as above) · U units, N second-level inputs of
one unit, M rows of a first-level layer that belong to one unit, A inputs with a column of ones
behind them where there is a bias, H heads.
"""
