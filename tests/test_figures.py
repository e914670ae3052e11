import re
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib import rcParams

from rresnet.figures import amounts, bars, drawing
from rresnet.reporting import rows

SPEEDUPS = pd.DataFrame(
    {
        "setting": ["gpu tuned $x$ <b>", "cpu tuned"],
        "device": ["gpu", "cpu"],
        "speedup": [30.0, 2.0],
        "speedup_low": [25.0, None],
        "speedup_high": [36.0, None],
        "pairs": [12, 2],
    }
)


def element(figure, **words):
    told = {"name": "f1", "title": "A title", "description": "What it shows."} | words
    return ElementTree.fromstring(drawing.inline(drawing.svg(figure), **told))


def texts(root):
    return [found.text for found in root.iter("{http://www.w3.org/2000/svg}text")]


def tips(root):
    return [found.text for found in root.iter("{http://www.w3.org/2000/svg}title")][1:]


def test_a_speedup_is_a_mark_with_its_interval_and_words():
    root = element(bars.speedups(SPEEDUPS, "cpu blog"))
    assert {"gpu tuned $x$ <b>", "30.00 (25.00 - 36.00)", "cpu tuned", "2.00"} <= set(texts(root))
    assert "speedup over cpu blog" in texts(root)
    assert tips(root) == ["gpu tuned $x$ <b>: 30.00 (25.00 - 36.00), 12 pairs", "cpu tuned: 2.00, 2 pairs"]


def test_a_figure_has_a_name_for_readers_and_ids_of_its_own():
    root = element(bars.speedups(SPEEDUPS, "cpu blog"))
    assert root.get("role") == "img"
    assert [child.tag.partition("}")[2] for child in root[:2]] == ["title", "desc"]
    assert root[0].text == "A title"
    assert root[1].text == "What it shows."
    identities = {found.get("id") for found in root.iter() if found.get("id")}
    assert all(identity.startswith("f1-") for identity in identities)
    targets = re.findall(r"#([\w.-]+)", ElementTree.tostring(root, encoding="unicode"))
    assert set(targets) <= identities


def test_the_page_decides_the_colours_and_the_font_and_the_file_has_its_own():
    drawn = drawing.svg(bars.speedups(SPEEDUPS, "cpu blog"))
    inline = drawing.inline(drawn, name="f", title="t", description="d")
    assert "var(--series-0)" in inline
    assert not re.findall(r"(?:fill|stroke): #", inline)
    assert "font-family" not in inline
    assert "<style" not in inline
    assert drawing.COLOURS[0].encode() in drawn


def test_drawing_leaves_the_programs_settings_alone():
    before = rcParams["font.size"]
    drawing.svg(bars.amounts({"a": 1.0}, "MiB"))
    assert rcParams["font.size"] == before


def test_a_figure_is_a_png_and_an_svg_file():
    figure = bars.amounts({"a": 1.5}, "MiB")
    files = drawing.files(figure, "new/v1.2", drawing.svg(figure))
    assert list(files) == ["new/v1.2.png", "new/v1.2.svg"]
    assert files["new/v1.2.png"].startswith(b"\x89PNG")
    assert ">1.5<" in files["new/v1.2.svg"].decode()


def test_amounts_stand_beside_their_bars():
    root = element(bars.amounts({"a": 12.5, "b": 3.0}, "% of the limit", notes={"a": "input"}))
    assert {"12.5 input", "3", "% of the limit"} <= set(texts(root))
    assert tips(root) == ["a: 12.5 input % of the limit", "b: 3 % of the limit"]


def test_stacked_amounts_begin_where_the_one_before_ends():
    table = pd.DataFrame({"warm-up": [1.0, 3.0], "training": [2.0, None]}, index=["a", "b"])
    figure = bars.stacked(table, "seconds")
    patches = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]
    assert patches == [(0, 1), (0, 3), (1, 2), (3, 0)]
    assert texts(element(figure))[-2:] == ["warm-up", "training"]


@pytest.mark.parametrize(("kinds", "lines"), [(3, 1), (4, 1), (5, 2), (6, 2)])
def test_no_word_of_a_legend_stands_alone_and_none_is_cut_off(kinds, lines):
    words = ["start-up", "compilation", "warm-up", "training", "evaluation", "clocks"]
    figure = bars.stacked(pd.DataFrame([[1.0] * kinds], ["a"], words[-kinds:]), "seconds")
    figure.draw_without_rendering()
    places = [text.get_window_extent() for text in figure.legends[0].texts]
    rows = [round(place.y0) for place in places]
    assert len(set(rows)) == lines
    assert min(map(rows.count, rows)) > 1
    assert max(place.x1 for place in places) < figure.bbox.x1


def test_each_clock_that_was_read_is_a_mark():
    table = pd.DataFrame(
        {"training": [10.0, 20.0], "step alone": [15.0, None], "input alone": [900.0, 30.0]}, ["a", "b"]
    )
    assert sorted(tips(element(bars.clocks(table)))) == [
        "a, input alone: 900 images/s",
        "a, step alone: 15 images/s",
        "a, training: 10 images/s",
        "b, input alone: 30 images/s",
        "b, training: 20 images/s",
    ]


def test_the_knee_is_ringed():
    rates = pd.DataFrame(
        {
            "series": "cpu blog",
            "batch_size": [8, 16, 32],
            "images_per_second": [50.0, 95.0, 100.0],
            "low": [45.0, None, 90.0],
            "high": [55.0, None, 110.0],
        }
    )
    root = element(amounts.batch_sizes(rates, rates[rates["batch_size"] == 16]))
    assert "cpu blog, batch 8: 50 images/s (45 - 55)" in tips(root)
    assert "cpu blog, batch 16: 95 images/s" in tips(root)
    assert "knee of cpu blog: batch 16" in tips(root)
    assert {"8", "16", "32", "cpu blog"} <= set(texts(root))


def test_learning_has_a_mark_an_epoch_in_both_halves():
    epochs = pd.DataFrame(
        {"setting": "a", "epoch": [1, 2], "elapsed_seconds": [10.0, 20.0], "test_accuracy": [0.5, 0.75]}
    )
    assert sorted(tips(element(amounts.learning(epochs)))) == [
        *["a, epoch 1, 10 s: 0.500"] * 2,
        *["a, epoch 2, 20 s: 0.750"] * 2,
    ]


def test_the_front_is_named():
    found = pd.DataFrame(
        {"setting": ["a", "b"], "epoch_seconds": [10.0, 20.0], "epoch_cost": [1.0, 2.0], "on_front": [True, False]}
    )
    root = element(amounts.costs(found, "EUR"))
    assert "a" in texts(root)
    assert "b" not in texts(root)
    assert tips(root) == ["a: 10 s, 1 EUR an epoch", "b: 20 s, 2 EUR an epoch"]


@pytest.mark.parametrize(("low", "high", "shown"), [(0.3, 4.0, "0.5x 1x 2x"), (0.5, 5e4, "1x 10x 1,000x")])
def test_a_logarithmic_axis_has_plain_numbers(low, high, shown):
    table = SPEEDUPS.assign(speedup=[high, low], speedup_low=float("nan"), speedup_high=float("nan"))
    words = texts(element(bars.speedups(table, "r")))
    assert set(shown.split()) <= set(words)
    assert not [text for text in words if "e+" in text]


def test_rows_are_encoded_without_loss_that_matters():
    table = pd.DataFrame(
        {
            "device": ["cpu", "cpu", None],
            "images_per_second": [1234.5678912, float("inf"), None],
            "repeat": [0, 1, 2],
            "channels_last": [True, False, True],
            "quality_flags": [["a", "b"], [], None],
            "output_tail": ["x" * 2000, None, "y"],
        }
    )
    found = {column["name"]: column for column in rows.encode([table])["columns"]}
    assert found["images_per_second"]["values"] == [1234.57, "inf", None]
    assert (found["device"]["levels"], found["device"]["codes"]) == (["cpu"], [0, 0, -1])
    assert found["repeat"]["values"] == [0, 1, 2]
    assert found["quality_flags"]["levels"] == ["a, b", ""]
    assert found["output_tail"]["levels"][0] == "x" * 1000 + " ... (2,000 letters)"
    assert found["device"]["doc"] == "device kind trained on"


def test_json_can_not_end_its_script():
    text = rows.dumps({"a": "</script><!-- & \u2028"})
    assert not set("<>&\u2028") & set(text)
    assert text == '{"a":"\\u003c/script\\u003e\\u003c!-- \\u0026 \\u2028"}'


@pytest.mark.filterwarnings("ignore:Glyph")
def test_control_characters_in_a_name_do_not_break_the_page():
    figure = bars.amounts({"photos\x01\x1b[2J": 3.0, "others": 41_000.0}, "MiB")
    root = ElementTree.fromstring(drawing.inline(drawing.svg(figure), name="n", title="a\x02b", description="d"))
    assert root.find("{*}title").text == "a?b"
    assert "41,000" in " ".join(texts(root))
