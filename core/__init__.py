"""RepMode and what both tasks need: network, training, streaming inference."""
