"""What is learnt: head, loss, metrics and label names. One file per kind of task."""
