"""What an adapter has changed: by place, by block, and in where the model looks."""
