"""`Edit`: a place, a verb and a layer, as plain data. It changes nothing until vpeft/injection carries it out.

The class is defined in places.py, because places return edits and an edit has a place; methods import it from here.
"""

from .places import Edit
from .verbs import VERBS, Lifetime, Verb

__all__ = ["VERBS", "Edit", "Lifetime", "Verb"]
