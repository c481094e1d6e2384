import itertools
import json

import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts
from retrodistill.data.collection import normalized
from retrodistill.data.conversations import (
    Conversations,
    Turn,
    load_conversations,
    make_turns,
    read_turns,
)

TURNS = [
    Turn("c1", 1, "what is a valve", "what is a valve", "a part of the heart"),
    Turn("c1", 2, "can it leak", "can a heart valve leak"),
    Turn("c1", 3, "and then?", "what if a heart valve leaks", "surgery"),
    Turn("c2", 1, "name a comet", "name a comet"),
]


class TestRawQueries:
    def raw(self, **settings):
        return dict(Conversations.from_turns(TURNS, **settings).raw)

    def test_the_current_utterance_stands_first_then_history_latest_first(self):
        assert self.raw() == {
            "c1_1": "what is a valve",
            "c1_2": "can it leak | a part of the heart | what is a valve",
            "c1_3": "and then? | can it leak | a part of the heart | what is a valve",
            "c2_1": "name a comet",
        }

    def test_without_responses(self):
        assert self.raw(responses=False)["c1_3"] == "and then? | can it leak | what is a valve"

    def test_a_bounded_history(self):
        assert self.raw(history=0)["c1_3"] == "and then?"
        assert self.raw(history=1)["c1_3"] == "and then? | can it leak"
        assert self.raw(history=2)["c1_3"] == "and then? | can it leak | a part of the heart | what is a valve"

    def test_another_separator(self):
        assert self.raw(separator=" [SEP] ")["c1_2"].startswith("can it leak [SEP] a part")

    def test_the_order_of_turns_is_that_of_their_numbers(self):
        assert dict(Conversations.from_turns(TURNS[::-1]).raw) == self.raw()

    def test_rewrites_have_the_same_ids(self):
        made = Conversations.from_turns(TURNS)
        assert made.rewrites.ids == made.raw.ids
        assert made.rewrites["c1_3"] == "what if a heart valve leaks"
        assert made.conversations == 2

    def test_what_survives_an_encoder_that_cuts_is_the_current_utterance(self, tiny_model):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        long = [Turn("c", number, "star orbit comet", "star", "moon " * 40) for number in range(9)]
        long.append(Turn("c", 9, "violin piano", "violin"))
        raw = Conversations.from_turns(long).raw["c_9"]
        kept = tokenizer.decode(tokenizer(raw, truncation=True, max_length=16)["input_ids"])
        assert "violin piano" in kept

    def test_a_first_turn_is_its_own_rewrite_and_later_ones_have_none_by_themselves(self):
        made = Conversations.from_turns([Turn("c", 2, "and its tail?"), Turn("c", 1, "name a comet")])
        assert dict(made.rewrites) == {"c_1": "name a comet"}
        assert dict(made.utterances) == {"c_1": "name a comet", "c_2": "and its tail?"}

    def test_a_turn_may_bring_its_own_history(self):
        asked = Turn("c", 7, "and its tail?", history=("name a comet", "Halley", "how old is it"))
        made = Conversations.from_turns([Turn("c", 1, "unrelated"), asked])
        assert made.raw["c_7"] == "and its tail? | how old is it | Halley | name a comet"
        assert made.earlier["c_7"] == ["how old is it", "name a comet"]
        assert (
            Conversations.from_turns([asked], history=1, responses=False).raw["c_7"] == "and its tail? | how old is it"
        )
        assert dict(Conversations.from_turns([Turn("c", 7, "name it", history=())]).rewrites) == {"c_7": "name it"}
        assert "c_7" not in made.rewrites

    def test_refusals(self):
        with pytest.raises(UserError, match="conversation 'c1' has turn 2 twice"):
            Conversations.from_turns([*TURNS, TURNS[1]])
        with pytest.raises(UserError, match="there is no turn"):
            Conversations.from_turns([])
        with pytest.raises(UserError, match="history=-1"):
            Conversations.from_turns(TURNS, history=-1)
        with pytest.raises(UserError, match="id 'x' appears more than once"):
            Conversations.from_turns([Turn("a", 1, "u", "r", query_id="x"), Turn("b", 1, "u", "r", query_id="x")])


class TestExpansions:
    # "heart" is in two documents, "valve" and "comet" in one, and "the" in all of the 24.
    DOCUMENTS = ("the heart valve", "the heart", "the comet", *["the rest"] * 21)

    def expanded(self, *utterances, **settings):
        turns = [Turn("c", number, utterance) for number, utterance in enumerate(utterances)]
        return list(Conversations.from_turns(turns).expansions(self.DOCUMENTS, **settings).texts)

    def test_the_rarest_words_of_earlier_utterances_come_first(self):
        assert self.expanded("the heart valve", "can it leak")[1] == "can it leak valve heart"
        assert self.expanded("the heart valve", "can it leak", words=1)[1] == "can it leak valve"

    def test_a_word_fades_with_each_utterance_and_counts_in_each(self):
        # log 25 = 3.22 for valve and comet, log 12.5 = 2.53 for heart.
        assert self.expanded("valve", "heart", "so", "and?")[3] == "and? valve heart"
        assert self.expanded("valve", "so", "heart", "and?")[3] == "and? heart valve"
        assert self.expanded("heart", "heart", "comet", "and?", words=2)[3] == "and? heart comet"

    def test_words_of_no_document_of_most_or_of_the_utterance_itself_are_left_out(self):
        assert self.expanded("the zebra", "a heart", "heart")[1:] == ["a heart", "heart"]

    def test_at_least_one_word(self):
        with pytest.raises(UserError, match="words=0"):
            self.expanded("heart", words=0)


class TestOfACollection:
    def test_judgments_follow_the_ids(self):
        documents = {"d1": "a heart valve", "d2": "a comet"}
        queries = {"q1": "does a heart valve leak", "q2": "other"}
        collection = Collection.from_parts("x", documents, queries, {"test": {"q1": {"d1": 1}, "q2": {"d2": 1}}})
        turns = [Turn("c", 1, "valves", "valves"), Turn("c", 2, "do they leak", queries["q1"], query_id="q1")]
        made = Conversations.from_turns(turns)
        raw, better = made.of(collection), made.of(collection, made.rewrites)
        assert raw.split("test").ids == better.split("test").ids == ["q1"]
        assert raw.queries["q1"] == "do they leak | valves"
        assert better.queries["q1"] == queries["q1"]
        assert len(raw.warnings) == 1
        assert raw.fingerprint != better.fingerprint != collection.fingerprint
        assert list(raw.documents.ids) == ["d1", "d2"]


def line(**changes):
    kept = {"conversation_id": "c1", "turn": 1, "utterance": "u", "rewrite": "r"} | changes
    return json.dumps({key: value for key, value in kept.items() if value is not ...})


class TestFile:
    def read(self, tmp_path, *lines):
        path = tmp_path / "turns.jsonl"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        return read_turns(path)

    def test_reads_what_was_written(self, tmp_path):
        turns = [*TURNS, Turn("c3", 7, "ü", "größer", query_id="own"), Turn("c4", 2, "u", history=("a", "b"))]
        rows = [{key: value for key, value in vars(turn).items() if value} for turn in turns]
        (tmp_path / "turns.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert read_turns(tmp_path / "turns.jsonl") == turns
        assert load_conversations(tmp_path / "turns.jsonl", history=0).raw["own"] == "ü"

    def test_optional_keys_may_be_absent_or_null_and_ids_integers(self, tmp_path):
        lines = line(), "", line(conversation_id=4, response=None, query_id=12), line(turn=2, rewrite=" ")
        assert self.read(tmp_path, *lines, line(turn=3, rewrite=...)) == [
            Turn("c1", 1, "u", "r"),
            Turn("4", 1, "u", "r", query_id="12"),
            Turn("c1", 2, "u"),
            Turn("c1", 3, "u"),
        ]

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            (line(turn=2, utterance=...), r"line 2: no 'utterance'; every turn has"),
            (line(turn=2, utterance=None), r"line 2: no 'utterance'"),
            (line(turn=2, utterance=""), r"line 2: 'utterance' is empty"),
            (line(turn=2, rewrite=5), r"line 2: 'rewrite' is 5 \(int\); expected a string"),
            (line(), r"line 2: turn 1 of conversation 'c1' is in line 1 already"),
            (line(turn=2, query_id="c1_1"), r"line 2: query id 'c1_1' is in line 1 already"),
            (line(turn=2, rewritten="r"), r"line 2: unknown key 'rewritten'\. Did you mean 'rewrite'\?"),
            (line(turn="2"), r"line 2: 'turn' is '2'; expected an integer"),
            (line(turn=True), r"line 2: 'turn' is True; expected an integer"),
            (line(turn=2, conversation_id=""), r"line 2: 'conversation_id' is ''"),
            (line(turn=2, response="\ud83d"), r"line 2: 'response' holds half a character"),
            (line(turn=2, history="said"), r"line 2: 'history' is 'said' \(str\); expected a list of strings"),
            (line(turn=2, history=["said", 5]), r"line 2: 'history' is 5 \(int\); expected a string"),
            (line(turn=2, history=["said", "answered", " "]), r"line 2: an utterance in 'history' is empty"),
            ('{"turn": 2,', r"line 2: not JSON"),
            ("[1, 2]", r"line 2: a JSON list, not an object"),
            ("\ud83d", r"line 2: not UTF-8"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path, second, message):
        with pytest.raises(UserError, match=message) as caught:
            self.read(tmp_path, line(), second)
        assert "\n" not in str(caught.value)

    def test_no_file_and_no_lines(self, tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            read_turns(tmp_path / "absent.jsonl")
        with pytest.raises(UserError, match="has no lines"):
            self.read(tmp_path, "", "")


class TestMadeConversations:
    QUERIES = Texts.from_pairs(
        [
            ("q1", "does aspirin prevent stroke"),
            ("q2", "is aspirin bad for kidneys?"),
            ("q3", "how do kidneys filter blood"),
            ("q4", "violin makers of Cremona"),
        ]
    )

    def test_a_worked_example(self):
        turns = [turn for seed in range(20) for turn in make_turns(self.QUERIES, 3, seed=seed) if turn.turn == 1]
        assert {turn.id for turn in turns} <= {"q1", "q2", "q3"}
        chain = next(made for seed in range(50) if (made := make_turns(self.QUERIES, 3, seed=seed))[0].id == "q1")
        assert [(turn.turn, turn.id, turn.utterance) for turn in chain] == [
            (1, "q1", "does aspirin prevent stroke"),
            (2, "q2", "is it bad for kidneys?"),
            (3, "q3", "how do it filter blood"),
        ]
        assert [turn.rewrite for turn in chain] == [self.QUERIES[turn.id] for turn in chain]
        assert {turn.conversation_id for turn in chain} == {"q1"}

    def test_history_holds_whatever_an_utterance_lacks(self, tiny):
        turns = make_turns(tiny.queries, 4)
        made = Conversations.from_turns(turns)
        assert sum(turn.utterance != turn.rewrite for turn in turns) >= 10
        for id_, rewrite in made.rewrites.items():
            assert set(normalized(rewrite).split()) <= set(normalized(made.raw[id_]).split())

    def test_every_query_is_in_at_most_one_conversation_of_two_to_length_turns(self, tiny):
        turns = make_turns(tiny.queries, 3)
        ids = [turn.id for turn in turns]
        assert len(ids) == len(set(ids))
        sizes = [sum(turn.conversation_id == name for turn in turns) for name in {t.conversation_id for t in turns}]
        assert min(sizes) >= 2
        assert max(sizes) == 3

    def test_each_turn_shares_a_word_that_is_not_common_with_the_one_before(self, tiny):
        turns = make_turns(tiny.queries, 4)
        for before, after in itertools.pairwise(turns):
            if before.conversation_id == after.conversation_id:
                assert (set(before.rewrite.split()) & set(after.rewrite.split())) - {"what", "all", "about"}

    def test_the_seed_decides(self, tiny):
        first, again, other = (make_turns(tiny.queries, seed=seed) for seed in (0, 0, 1))
        assert first == again != other

    def test_refusals(self):
        with pytest.raises(UserError, match="length=1"):
            make_turns(self.QUERIES, 1)
        with pytest.raises(UserError, match="no two of 2 queries share a word"):
            make_turns(Texts.from_pairs([("a", "star"), ("b", "violin")]))
