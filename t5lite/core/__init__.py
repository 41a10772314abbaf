"""The base of all packages: errors, fields, numbers as inputs, random streams, files, locks.

Dimension letters used in every shape annotation and einsum string:

    b batch    l length    q query length    k key length    e model width    h heads
    d width of a head    f feed-forward width    v vocabulary    r relative-position buckets
    n stacked layers

Nothing here depends on models, data or training.
"""
