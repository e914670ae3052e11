"""What a machine costs: how prices are given, and which trials they are of."""

import pytest
from tables import BLOG, GPU, trials

from rresnet.analysis import decision
from rresnet.analysis.decision import Price
from rresnet.analysis.prices import used
from rresnet.cell import UsageError


def test_blanks_around_a_price_do_not_count():
    assert decision.prices([" cpu=0.40 EUR/h "]) == decision.prices(["cpu=0.40 EUR/h"])


def test_prices_are_read_from_texts():
    assert decision.prices(["gpu=4.10/h", "NVIDIA A100=3/h"]) == (
        Price(what="gpu", per_hour=4.1),
        Price(what="NVIDIA A100", per_hour=3.0),
    )
    one, other = decision.prices(["cpu=0.40 EUR/h", "gpu=4/h"])
    assert (one.currency, other.currency) == ("EUR", "EUR")  # there is one currency, so it is that of all
    assert decision.prices([]) == ()


def test_prices_are_read_from_a_file_with_its_date_and_source(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(
        'currency = "USD"\ndate = 2026-11-01\nsource = "a list"\n[price]\ngpu = 4.10\n"AMD EPYC" = 1\n',
        encoding="utf-8",
    )
    about = {"currency": "USD", "date": "2026-11-01", "source": "a list"}
    assert decision.prices([str(path)]) == (
        Price(what="gpu", per_hour=4.1, **about),
        Price(what="AMD EPYC", per_hour=1.0, **about),
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["gpu"], "--price must be WHAT=AMOUNT .* got 'gpu'"),
        (["gpu=4.10"], "got 'gpu=4.10'"),
        (["=4.10/h"], "got '=4.10/h'"),
        (["gpu=much/h"], "got 'gpu=much/h'"),
        (["gpu=0/h"], r"a price must be a number above 0, got 0 \(gpu=0/h\)"),
        (["gpu=-1/h"], "above 0, got -1"),
        (["gpu=nan/h"], "above 0, got nan"),
        (["gpu=inf/h"], "above 0, got inf"),
        (["cpu=1e-320 USD/h"], r"got 9.99989e-321 .*: 1e-09 to 1e\+12 are valid"),
        (["cpu=1e300/h"], "are valid"),
        (["gpu=1/h", "GPU=2/h"], "--price names gpu twice"),
        (["gpu=1 EUR/h", "cpu=2 USD/h"], "prices in EUR and USD can't be compared"),
        (["nothing.toml"], r"can't read the price file nothing.toml \(No such file"),
    ],
)
def test_wrong_prices_are_named(texts, message):
    with pytest.raises(UsageError, match=message):
        decision.prices(texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gpu = = 4", "not TOML"),
        ("", r"has no table \[price\]"),
        ("price = 4", r"has no table \[price\]"),
        ("gpu = 4.10", r"has gpu: only the table \[price\], currency, date and source are valid"),
        ("[price]\ngpu = '4.10'", "the price of gpu must be a number an hour .* got '4.10'"),
        ("[price]\ngpu = true", "the price of gpu must be a number"),
        ("[price]\ngpu = -1", r"above 0, got -1 \(gpu in "),
        (f"[price]\ngpu = {10**400}", r"got 1(0{19}) \(gpu in .*1e\+12 are valid"),
    ],
)
def test_wrong_price_files_are_named(content, message, tmp_path):
    (tmp_path / "x.toml").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        decision.prices([str(tmp_path / "x.toml")])


def test_the_longest_name_goes_before_the_kind():
    table = trials((BLOG, [100.0] * 3), (GPU, [100.0] * 3)).assign(cpu_model="AMD EPYC 7763")
    table["gpu_name"] = table["device"].map({"gpu": "NVIDIA A100-SXM4-40GB"})
    prices = decision.prices(["cpu=1/h", "gpu=2/h", "nvidia a100=3/h", "EPYC=5/h", "AMD EPYC=6/h"])
    found = decision.costs(table, prices).set_index("setting")["price_per_hour"]
    assert found.to_dict() == {"cpu blog batch 64 fp32": 6.0, "gpu blog batch 64 tf32": 3.0}  # EPYC is a CPU


def test_prices_that_fit_nothing_are_named():
    with pytest.raises(UsageError, match="no price fits a trial: there are prices for gpu, the trials ran on cpu, vm"):
        decision.costs(trials((BLOG, [100.0] * 3)), decision.prices(["gpu=3.6/h"]))


def test_prices_by_kind_are_so_in_any_case_and_what_fits_nothing_is_known():
    table = trials((BLOG, [100.0] * 3), (GPU, [400.0] * 3)).assign(cpu_model="Intel Xeon CPU", gpu_name="NVIDIA A100")
    given = decision.prices(["CPU=0.36 USD/h", "GPU=3.6 USD/h", "NVIDA A100=9 USD/h"])
    costs = decision.costs(table, given).set_index("setting")
    assert costs["price_per_hour"].to_dict() == {"gpu blog batch 64 tf32": 3.6, "cpu blog batch 64 fp32": 0.36}
    assert [price.what for price in used(table, given)] == ["CPU", "GPU"]
