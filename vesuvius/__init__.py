"""Ink detection in micro-CT of carbonised papyrus, from Kaggle fragments to submissions."""
