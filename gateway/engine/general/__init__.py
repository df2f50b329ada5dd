"""Any decoder-only architecture of transformers: its own modelling over our weights and cache.

Slower than the lean decoder, because sequences run one after the other, in float32 between the
linear layers; what is computed is what transformers' model computes.
"""
