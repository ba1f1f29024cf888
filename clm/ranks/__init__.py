"""Several processes that train one model: what they tell each other. One rank is the normal case, and costs nothing."""

from clm.ranks.ranks import ALONE, Ranks

__all__ = ["ALONE", "Ranks"]
