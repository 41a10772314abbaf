"""The networks: pure mathematics in functions, weights in thin Linen modules around them.

Read in this order: config, masks, positions, attention, feedforward, encoder, decoder,
architectures.
Parameter names follow T5X and are public API. The network never sees a padding id: what may be
attended to, and what counts, comes in as masks and weights.
"""
