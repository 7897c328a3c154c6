"""Using trained networks."""
