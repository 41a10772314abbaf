"""The families of Hugging Face models that are read and written, by `model_type`."""

from t5lite.interop.family import Family
from t5lite.interop.t5_family import T5_FAMILY

FAMILIES: dict[str, Family] = dict.fromkeys(("t5", "mt5", "umt5", "longt5"), T5_FAMILY)


def family_to_write() -> Family:
    """Returns the family that models are written as."""
    return T5_FAMILY
