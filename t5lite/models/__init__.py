"""The networks: mathematics in plain functions, parameters in thin Linen modules around them.

`config_fields` lists what can be chosen. A part is a row in a table: `attention.ATTENTION`,
`norms.NORMS` and `NORM_PLACEMENTS`, `positions.POSITIONS`, `mixers.MIXERS`,
`feedforward.ACTIVATIONS`. `config` checks the choices; `stack`, `encoder`, `decoder` and
`architectures` put the parts together and do not distinguish them.

Parameter names follow T5X and are public API. The network never sees a padding id: masks and
weights say what may be attended to and what counts.
"""
