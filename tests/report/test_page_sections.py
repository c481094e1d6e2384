import re
from html import unescape

from sample_results import (
    agreement,
    cost,
    everywhere,
    example,
    hit,
    results,
    section,
    system,
    unjudged,
    valued,
    whole,
)  # fmt: skip


def plain(html):
    """The words that a reader sees, one space between them."""
    return " ".join(unescape(re.sub(r"<(svg|title).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL)).split())


def rows(html):
    """Words of each row of the tables."""
    return [plain(row) for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)]


class TestSystems:
    def test_a_column_that_nobody_has_is_left_out(self):
        assert "MRR@10" not in section("systems", results(systems=everywhere(mrr10=None)))
        assert "MAP" in section("systems", results(systems=everywhere(map1000=0.5)))

    def test_other_measures_have_columns(self):
        head, first = rows(section("systems", results(systems=everywhere(measures={"ndcg@3": 0.612}))))[:2]
        assert "nDCG@3" in head
        assert "0.612" in first

    def test_says_of_whom_it_is_kept(self):
        assert "share of the nDCG@10 of ensemble" in section("systems", results())
        assert "share of the nDCG@10 of teacher" in section("systems", results(kept_of="teacher"))


class TestDifferences:
    def test_a_row_says_all_that_was_tested(self):
        assert rows(section("differences", whole()))[1] == (
            "student − ensemble −0.043 significant −0.066 to −0.021 < 0.001 < 0.001 40 / 200 / 60 0.031"
        )

    def test_the_corrected_p_decides(self):
        near = {**whole().comparisons[0], "p": 0.03, "p_holm": 0.06}
        row = rows(section("differences", whole(comparisons=[near])))[1]
        assert "0.030 0.060" in row
        assert " not significant " in row

    def test_measures_are_told_apart_where_there_are_several(self):
        head, *both = rows(
            section(
                "differences",
                whole(comparisons=[*results().comparisons, {**results().comparisons[0], "measure": "mrr@10"}]),
            )
        )
        assert head.startswith("difference mean")
        assert [row.split(" −0.043")[0] for row in both] == [
            "student − ensemble , nDCG@10",
            "student − ensemble , MRR@10",
        ]
        assert rows(section("differences", results()))[0].startswith("difference nDCG@10 verdict")

    def test_an_earlier_comparison_lacks_the_rest_and_is_shown(self):
        assert rows(section("differences", results()))[1].endswith("significant −0.066 to −0.021 < 0.001 – – –")

    def test_intervals_share_a_scale_with_0_in_the_middle(self):
        html = section("differences", whole())
        places = [float(place) for place in re.findall(r'cx="([\d.]+)"', html)]
        assert places[0] < 90 < places[1]
        ends = [tuple(map(float, ends)) for ends in re.findall(r'interval" d="M([\d.]+) [\d.]+H([\d.]+)', html)]
        assert all(low < place < high for (low, high), place in zip(ends, places, strict=True))
        assert min(low for low, _ in ends) == 5  # the widest reaches its end

    def test_differences_of_nothing_are_drawn_too(self):
        same = {**results().comparisons[0], "difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}
        assert 'cx="90.0"' in section("differences", results(comparisons=[same]))

    def test_nothing_compared_is_no_section(self):
        assert section("differences", results(comparisons=[])) == ""


class TestAgreement:
    def test_a_row_a_system_with_the_ceiling_beside_its_quality(self):
        student = next(row for row in rows(section("agreement", whole())) if row.startswith("student"))
        assert student == "student 0.713 0.740 −0.520 0.690 0.721"

    def test_without_judgments_quality_has_no_column(self):
        student = next(row for row in rows(section("agreement", unjudged())) if row.startswith("student"))
        assert student == "student 0.713 0.740 −0.520"
        assert "Ceiling" not in section("agreement", unjudged())

    def test_a_calibration_plot_a_system(self):
        html = section("agreement", whole())
        assert len(re.findall('aria-label="calibration of', html)) == 4
        assert "student , 400 pairs" in plain(html)

    def test_one_group_of_scores_is_no_plot(self):
        one = agreement(calibration=agreement().calibration[:1])
        assert "Calibration" not in section("agreement", results(systems=everywhere(agreement=one)))

    def test_not_asked_is_no_section(self):
        assert section("agreement", results()) == ""


class TestCosts:
    def test_a_row_a_batch(self):
        found = rows(
            section("front", results(systems=[system("bm25", "baseline", cost=cost())], taught_by=None, comparisons=[]))
        )
        assert found[1:3] == [
            "bm25 , baseline 1 7.5 0.40 7.9 9.3 10.4 126",
            "bm25 , baseline 32 – – 7.9 9.3 10.4 126",
        ]

    def test_what_is_unknown_is_a_dash(self):
        bare = cost(total_bytes=None, peak_bytes=None, tokens_per_second=None, matrix_share=None, encode_seconds=None)
        shown = section(
            "front", results(systems=[system("bm25", "baseline", cost=bare)], taught_by=None, comparisons=[])
        )
        assert rows(shown)[-1] == "bm25 , baseline – – – – – –"

    def test_memory_of_a_gpu_is_shown_where_there_is_one(self):
        def shown(**changed):
            systems = [system("bm25", "baseline", cost=cost(**changed))]
            return section("front", results(systems=systems, taught_by=None, comparisons=[]))

        assert "GPU memory" not in shown()
        assert rows(shown(gpu_peak_bytes=2_000_000_000))[-1].endswith("2 GB")

    def test_not_measured_is_nothing(self):
        assert "<table" not in section("front", results())


class TestCompression:
    def sizes(self, **ndcg):
        made = [system("exact", "teacher", ndcg10=0.8, bytes_per_document=1536.0, retention=None)]
        made += [
            system(name.replace("_", "-"), "control", ndcg10=value, bytes_per_document=float(name.split("_")[1]))
            for name, value in ndcg.items()
        ]
        return section("compression", results(systems=made, taught_by=None, comparisons=[]))

    def test_systems_of_one_model_at_several_sizes(self):
        html = self.sizes(opq_16=0.6, opq_32=0.7, learned_16=0.72)
        assert [row.split()[0] for row in rows(html)[1:]] == ["opq-16", "learned-16", "opq-32", "exact"]
        assert rows(html)[1] == "opq-16 , control 16 96× 0.600 75.0%"
        assert rows(html)[-1] == "exact , teacher 1,536 1× 0.800 100.0%"

    def test_a_line_goes_through_each_ways_sizes(self):
        lines = re.findall(
            r'class="family" d="([^"]+)"', self.sizes(opq_16=0.6, opq_32=0.7, opq_64=0.75, learned_16=0.7)
        )
        assert [line.count("L") for line in lines] == [2]

    def test_one_size_is_no_curve(self):
        assert section("compression", results(systems=everywhere(bytes_per_document=1536.0))) == ""
        near = [system("a", bytes_per_document=1536.0), system("b", bytes_per_document=1540.0)]
        assert section("compression", results(systems=near, taught_by=None, comparisons=[])) == ""

    def test_other_models_documents_are_not_compared(self):
        apart = [system("a", documents_by="x"), system("b", documents_by="y", bytes_per_document=16.0)]
        assert section("compression", results(systems=apart, taught_by=None, comparisons=[])) == ""


class TestQueries:
    def test_won_and_lost_are_counted_out_of_all(self):
        told = plain(section("queries", whole()))
        assert "Won: student above ensemble (the 3 largest of 40)" in told
        assert "Lost: student below ensemble (the 1 largest of 60)" in told
        assert "Evenly spaced" in told

    def test_each_says_its_values(self):
        told = plain(section("queries", whole()))
        assert "won 0 nDCG@10 0.200 → 0.900 (+0.700) won" in told
        assert "lost on Zebrafish nDCG@10 1.000 → 0.500 (−0.500) lost" in told

    def test_without_values_the_first_relevant_documents_tell(self):
        assert "first relevant: teacher 1, student 2 lost" in plain(section("queries", results()))

    def test_without_judgments_what_is_shared_tells(self):
        told = plain(section("queries", results(examples=[example(relevant=[])])))
        assert "2 of 3 of the documents shown are the same" in told

    def test_both_rankings_have_title_text_and_marks(self):
        titled = example(teacher=[hit("a", "the text", title="The title", relevant=True, score=-0.25)], student=[])
        html = section("queries", results(examples=[titled]))
        assert "✓ relevant a −0.25 The title the text" in plain(html)
        assert html.count('<li class="relevant">') == 1
        assert "<li>–</li>" in html

    def test_a_long_query_is_whole_when_opened(self):
        long = "word " * 200
        html = section("queries", results(examples=[valued(long, 0.0, 1.0)]))
        summary = html[html.index("<summary>") : html.index("</summary>")]
        assert len(plain(summary)) < 320
        assert long in html

    def test_none_is_no_section(self):
        assert section("queries", results(examples=[])) == ""
