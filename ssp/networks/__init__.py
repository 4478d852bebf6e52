"""The networks that are compared: RepMode and eight other ways to predict by task."""
