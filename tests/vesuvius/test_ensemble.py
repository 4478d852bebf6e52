"""Samples of a network that was trained without dropout are few drops away from it."""

from __future__ import annotations

from vesuvius.ensemble import EnsembleConfig, load_ensemble


def test_samples_of_a_network_trained_without_dropout_are_said_to_drop_little(run, capsys):
    load_ensemble(run, EnsembleConfig(mc_samples=2)).note_gentle_samples()
    assert "was trained without dropout, so its samples drop only 0.05" in capsys.readouterr().err
    load_ensemble(run, EnsembleConfig(mc_samples=2, mc_dropout=0.1)).note_gentle_samples()
    load_ensemble(run, EnsembleConfig()).note_gentle_samples()
    assert capsys.readouterr().err == ""
