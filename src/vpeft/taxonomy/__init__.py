"""Where each method stands: what its plan and its memory say, held against the survey's table."""
