"""Checking a data set before it is trained on: what is there, what is wrong with it, and how to mend it."""
