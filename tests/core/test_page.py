"""Pages whose text cannot break out of them."""

from __future__ import annotations

import base64

from core.page import figure, table, write_page


def test_a_page_holds_its_pictures_and_escapes_its_text(tmp_path):
    png = b"\x89PNG bytes"
    body = [table(["a<b", "n"], [["<i>", "1"], ["&", "2"]]), figure(png, 'the "<label>"')]
    write_page(tmp_path / "deep" / "page.html", "1 < 2", body)
    text = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert "<title>1 &lt; 2</title>" in text
    assert "<th>a&lt;b</th><th>n</th>" in text
    assert "<tr><td>&lt;i&gt;</td><td>1</td></tr><tr><td>&amp;</td><td>2</td></tr>" in text
    assert base64.b64encode(png).decode() in text
    assert 'alt="the &quot;&lt;label&gt;&quot;"' in text
    assert [path.name for path in tmp_path.joinpath("deep").iterdir()] == ["page.html"]
