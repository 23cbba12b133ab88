"""Text in pictures: Chinese where a font has it, never empty boxes."""

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from baichuan.picture import families, fonts, readable, save


def test_characters_without_a_glyph_are_escaped(monkeypatch):
    latin = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(fontManager, "ttflist", latin)
    assert families() == ["DejaVu Sans"]
    assert readable("Café 13b") == "Café 13b"
    assert readable("模型A") == "\\u6a21\\u578bA"
    assert readable("Ａ１") == "A1"  # fullwidth, which has a plain form
    assert readable("🙂") == "\\U0001f642"


def test_a_chinese_font_is_put_behind_the_latin_one(monkeypatch):
    latin = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]
    chinese = [type(latin[0])(fname=latin[0].fname, name="Noto Sans CJK SC")]
    monkeypatch.setattr(fontManager, "ttflist", latin + chinese)
    assert families() == ["DejaVu Sans", "Noto Sans CJK SC"]


@pytest.mark.parametrize("text", ["模型", "한국어", "क", "🙂", "5$ and $x^$"])
def test_any_text_is_drawn_without_a_warning(tmp_path, text):
    with fonts():
        figure = Figure()
        figure.suptitle(readable(text))
        save(figure, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 0
