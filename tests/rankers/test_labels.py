import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.rankers.ensemble import LABELS, SoftLabels, soft_labels
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.runs import Run

PAIRS = [("q0", "d1"), ("q0", "d2"), ("q1", "d3"), ("q1", "d4")]


def recorded(scores, name):
    queries, documents = zip(*PAIRS, strict=True)
    return RecordedRanker(Run.from_arrays(list(queries), list(documents), scores, name=name))


@pytest.fixture
def asked(tiny):
    return tiny.split("train")


@pytest.fixture
def candidates():
    return recorded([0.0] * 4, "pool").run


class TestLabels:
    @pytest.mark.parametrize(
        ("kind", "scores", "wanted"),
        [
            ("sigmoid", [0.0, np.log(3), -np.log(3), 40.0], [0.5, 0.75, 0.25, 1.0]),
            ("cosine", [-1.0, -0.5, 0.0, 1.0], [0.0, 0.25, 0.5, 1.0]),
            ("sigmoid-cosine", [0.0, np.log(3), -np.log(3), 40.0], [0.0, 0.5, -0.5, 1.0]),
            ("mean", [0.1, 0.9, 0.3, 0.4], [0.1, 0.9, 0.3, 0.4]),
        ],
    )
    def test_each_maps_scores(self, tiny, asked, candidates, kind, scores, wanted):
        found = SoftLabels([recorded(scores, "one")], kind).score(asked, tiny, candidates)
        assert found.scores.tolist() == pytest.approx(wanted)
        assert found.document_ids.tolist() == candidates.document_ids.tolist()

    def test_a_perfect_cross_encoder_gives_the_cosines_that_it_learned(self, tiny, asked, candidates):
        cosines = [-0.9, -0.1, 0.3, 0.95]
        labels = SoftLabels([recorded(cosines, "bi")], "cosine").score(asked, tiny, candidates).scores
        logits = np.log(labels / (1 - labels))  # where binary cross-entropy is least
        back = SoftLabels([recorded(logits.tolist(), "cross")], "sigmoid-cosine").score(asked, tiny, candidates)
        assert back.scores.tolist() == pytest.approx(cosines)

    def test_several_are_mapped_alone_and_averaged_by_weight(self, tiny, asked, candidates):
        members = [recorded([0.0, 2.0, -2.0, 1.0], "one"), recorded([4.0, 0.0, 0.0, 1.0], "two")]
        found = SoftLabels(members, "sigmoid", [1.0, 3.0]).score(asked, tiny, candidates)
        one, two = (1 / (1 + np.exp(-member.run.scores)) for member in members)
        assert found.scores.tolist() == pytest.approx(((one + 3 * two) / 4).tolist())

    def test_logits_are_no_cosines(self, tiny, asked, candidates):
        with pytest.raises(UserError, match=r"labels: cosine of scores up to 7"):
            SoftLabels([recorded([7.0, 0.0, 0.0, 0.0], "one")], "cosine").score(asked, tiny, candidates)

    def test_a_digest_of_members_weights_and_kind(self, tiny):
        one, two = recorded([0.0, 1.0, 2.0, 3.0], "one"), recorded([0.0, 1.0, 2.0, 4.0], "two")
        made = [
            SoftLabels([one], "mean"),
            SoftLabels([one], "sigmoid"),
            SoftLabels([two], "mean"),
            SoftLabels([one, two], "mean"),
            SoftLabels([one, two], "mean", [1.0, 2.0]),
        ]
        assert len({labels.fingerprint(tiny) for labels in made}) == len(made)

    def test_what_is_left_to_do_is_the_members_work(self, tiny, asked, candidates):
        assert SoftLabels([recorded([0.0] * 4, "one")], "mean").remaining(asked, tiny, candidates).items == 0

    def test_one_recorded_run_stays_one_with_its_own_candidates(self):
        found = soft_labels([recorded([0.0, np.log(3), 40.0, -40.0], "one")], "sigmoid")
        assert isinstance(found, RecordedRanker)
        assert found.run.scores.tolist() == pytest.approx([0.5, 0.75, 1.0, 0.0])
        two = soft_labels([recorded([0.0] * 4, "one"), recorded([0.0] * 4, "two")], "sigmoid")
        assert isinstance(two, SoftLabels)

    def test_unknown_kinds_and_no_members_are_refused(self):
        with pytest.raises(UserError, match=r"unknown kind of labels 'sigmoyd'. Did you mean 'sigmoid'"):
            SoftLabels([recorded([0.0] * 4, "one")], "sigmoyd")
        with pytest.raises(UserError, match=r"no teacher was given"):
            SoftLabels([], "mean")

    def test_each_kind_has_its_line(self):
        assert set(LABELS) == {"scores", "mean", "sigmoid", "cosine", "ranks", "sigmoid-cosine"}
        assert not any("\n" in line for line in LABELS.values())
