"""Small trainable modules that several methods share. They see channels last unless they say otherwise."""
