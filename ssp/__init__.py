"""Subcellular structure prediction: fluorescence from transmitted-light microscopy."""
