"""Published tables: read with their source, checked against themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import vpeft.report
from vpeft.bench.statistics import rank_correlation
from vpeft.report.published import BadTable, figures_of, names, published

SHIPPED = Path(vpeft.report.__file__).parent / "published"


def test_vtab_is_read_whole() -> None:
    table = published("vtab1k")
    assert len(table.tasks) == 19
    assert len(table.rows) == 20
    lora = next(row for row in table.rows if row.method == "LoRA")
    assert lora.scores["Clevr/count"] == pytest.approx(0.829)
    assert lora.parameters == 290_000
    assert lora.mean == pytest.approx(0.7225, abs=5e-5)
    assert lora.ppt == pytest.approx(0.7136, abs=5e-5)
    groups = table.group_means(lora)
    # The mean of the three group means, as most papers print it; from the survey's check of the table.
    assert sum(groups.values()) / 3 == pytest.approx(0.7460, abs=5e-5)


def test_the_slips_of_the_print_are_found_and_no_others() -> None:
    slips = {row.method: row.slips() for row in published("vtab1k").rows if row.slips()}
    assert set(slips) == {"BitFit", "RepAdapter", "DTL"}
    assert slips["DTL"] == ["PPT printed 0.75, computed 0.7445"]


def test_full_finetuning_has_no_printed_ppt() -> None:
    row = published("vtab1k").rows[0]
    assert (row.method, row.printed_ppt) == ("Full fine-tuning", None)
    assert row.ppt == pytest.approx(0.246, abs=5e-4)


def test_reported_means_can_be_correlated_by_our_names() -> None:
    means = published("vtab1k").means()
    assert means["lora"] == pytest.approx(0.7225, abs=5e-5)
    assert rank_correlation(means, means).spearman.value == pytest.approx(1.0)


def test_every_shipped_table_states_its_source() -> None:
    assert names() == [
        "coco",
        "continual_pilot",
        "fgvc",
        "retrieval",
        "video_swin",
        "video_vit",
        "voc_ade20k",
        "vtab1k",
        "vtab1k_osu",
    ]
    for name in names():
        about = published(name).about
        assert about.source
        assert about.protocol


def test_the_clean_re_run_is_read_whole() -> None:
    table = published("vtab1k_osu")
    assert (len(table.tasks), len(table.rows)) == (19, 16)
    # means over 19 tasks that the authors' result files give; the table's scores are rounded to a decimal
    means = table.means()
    for method, mean in {
        "adapter": 73.21,
        "difffit": 72.03,
        "lora": 72.91,
        "bitfit": 72.18,
        "linear_probe": 55.86,
    }.items():
        assert 100 * means[method] == pytest.approx(mean, abs=0.03)


def test_a_method_s_figures_come_with_their_source() -> None:
    figures = {figure.table.split(",")[0]: figure for figure in figures_of("lora")}
    assert set(figures) == {
        "COCO",
        "FGVC",
        "SSv2 and HMDB51",
        "Pascal VOC (RetinaNet) and ADE20K (UperNet) on Swin-L",
        "VTAB-1k",
    }
    assert len(figures_of("lora")) == 6  # VTAB-1k twice
    assert figures["COCO"].scores == {"box AP": pytest.approx(0.512), "mask AP": pytest.approx(0.443)}
    assert figures["COCO"].parameters == 3_030_000 and "c188fad" in figures["COCO"].source
    vtab = figures_of("dtl")
    assert [list(figure.scores) for figure in vtab] == [["mean of 19", "natural", "specialised", "structured"]]
    assert vtab[0].scores["mean of 19"] == pytest.approx(0.7458, abs=5e-5)
    assert sum(list(vtab[0].scores.values())[1:]) / 3 == pytest.approx(0.767, abs=1e-3)  # the paper prints 76.7
    assert figures_of("attnscale") == []


def test_every_name_of_ours_is_a_method() -> None:
    from vpeft.methods import all_methods

    for name in names():
        assert set(published(name).about.names) <= set(all_methods()), name


def test_the_row_fact_is_the_tucker_form() -> None:
    """FacT's 0.07 M is the average of FacT-TK; the tensor train of the same paper has 0.037 M."""
    assert published("vtab1k").about.names["fact_tk"] == "FacT"


def copy(tmp_path: Path) -> Path:
    for suffix in (".csv", ".json"):
        shutil.copy(SHIPPED / f"vtab1k{suffix}", tmp_path / f"mine{suffix}")
    return tmp_path / "mine.csv"


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    assert published(copy(tmp_path)).rows == published("vtab1k").rows


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("0.29M", "many", "'many' is not a number of parameters"),
        (",85.3,", ",853,", "not a score from 0 to 100"),
        (",85.3,", ",-,", "not a score from 0 to 100"),
        (",85.3,", ",x,", "'x' is not a number"),
        ("LoRA", "Lora", "speaks of LoRA"),
        ("Method,", "Model,", "no rows with a column Method"),
    ],
)
def test_a_table_with_a_mistake_is_refused(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = copy(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(BadTable, match=complaint):
        published(path)


def test_a_table_without_its_source_is_refused(tmp_path: Path) -> None:
    path = copy(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(BadTable, match=r"no mine\.json beside it"):
        published(path)
    with pytest.raises(BadTable, match="Did you mean 'vtab1k'"):
        published("vtab")
