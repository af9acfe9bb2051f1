"""Modules from what a backbone computes to a task's outputs; one file each, found by name."""
