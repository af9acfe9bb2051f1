"""Where data sets come from: one file per source, found by the registry; adding one is adding a file."""
