"""Small trainable modules that several methods share. They take channels last unless they say otherwise."""
