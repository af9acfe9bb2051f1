"""How edits are carried out: the only code that touches a live model. Knows no method and no backbone by name."""
