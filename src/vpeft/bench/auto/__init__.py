"""Choose method, size, learning rate and epochs for a user's data: from records first, then by a race on validation."""

from vpeft.bench.auto.choose import AutoOutcome, run_auto
from vpeft.bench.auto.experience import Candidate, Experience, experience_of, shipped
from vpeft.bench.auto.propose import Proposal, propose
from vpeft.bench.auto.race import Race, RaceEntry, Rung, plan_race, race

__all__ = [
    "AutoOutcome",
    "Candidate",
    "Experience",
    "Proposal",
    "Race",
    "RaceEntry",
    "Rung",
    "experience_of",
    "plan_race",
    "propose",
    "race",
    "run_auto",
    "shipped",
]
