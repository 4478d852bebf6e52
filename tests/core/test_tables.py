"""Tables of text, and means with their spread."""

from __future__ import annotations

from core.tables import markdown_table, spread, text_table


def test_columns_of_a_text_table_are_aligned_and_lines_end_with_text():
    table = text_table(["name", "n"], [["a", "100"], ["longer", ""]])
    assert table.splitlines() == ["name    n", "a       100", "longer"]


def test_a_markdown_table_has_a_rule_below_its_head():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_spread_is_the_sample_deviation_and_one_value_has_none():
    assert spread([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert spread([0.12345], 3) == "0.123"
