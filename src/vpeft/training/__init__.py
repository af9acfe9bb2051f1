"""Training: one loop, its settings, its results; and recipes, which are whole runs written down."""
