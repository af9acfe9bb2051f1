"""An edit: a place, a verb and a layer, as plain data. Nothing is touched until injection carries it out.

`Edit` itself stands beside the places, because a place makes it and it names its place; methods import it from here.
"""

from .places import Edit
from .verbs import VERBS, Lifetime, Verb

__all__ = ["VERBS", "Edit", "Lifetime", "Verb"]
