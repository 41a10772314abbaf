"""A model without layers, for losses."""


class Fixed:
    """Its logits are among its parameters, as are the results of its other methods."""

    frozen = {}

    def __call__(self, params, batch, key=None):
        return params["logits"]

    def hidden(self, params, batch, key=None):
        return params["logits"], {}

    def logits(self, params, x):
        return x

    def embedded(self, params, batch):
        return {}

    def head(self, params, name, *arguments):
        return params[name]
