"""What every room stands on: errors, random streams, numbers as inputs, the step predicate.

Dimension letters used in every shape annotation and einsum string:

    b batch    l length    q query length    k key length    e model width    h heads
    d width of a head    f feed-forward width    v vocabulary    r relative-position buckets
    n stacked layers

Nothing here knows of models, data or training.
"""
