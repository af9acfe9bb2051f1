"""Continual learners, one file each; `vpeft.regimes.learner.all_learners` finds them by name."""
