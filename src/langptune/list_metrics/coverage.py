"""Catalogue coverage: the share of the catalogue that is in at least one of the compared lists.

Source: Ge, Delgado-Battenfeld and Jannach, "Beyond accuracy: evaluating recommender systems by coverage and
serendipity" (RecSys 2010). It grows with the number of lists.
"""

from __future__ import annotations

from langptune.list_metrics import Facts, Lists

TITLE = "Catalogue coverage"
NEEDS = ()
PER_SESSION = False


def values(lists: Lists, facts: Facts) -> float:
    """A number in (0, 1]."""
    return float((lists.counts > 0).mean())
