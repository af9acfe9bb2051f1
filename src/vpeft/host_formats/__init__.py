"""How whole models of other libraries take targets and give predictions: one file for each convention."""
