"""What `make` and the `workshop` command call."""
