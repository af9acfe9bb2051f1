"""VTAB-1k: facts of its 19 tasks, the proof of a copy on disk, and the search for its images in full data sets."""
