"""Tests of the story world: what is told is consistent, the checker knows right from wrong, the splits are apart.

Every generated story must pass its own check, and every kind of damage to it must fail.
"""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.stories import small_talk, talk, world
from training.stories.checker import check
from training.stories.talk import Turn, conversations, preferences, prompts, turns
from training.stories.tell import (
    FORETOLD,
    SHAPES,
    Request,
    Split,
    Story,
    documents,
    introduce,
    names_for,
    questions,
    split_of,
    stories,
)

SPLITS: tuple[Split, ...] = get_args(Split)
seeds = st.integers(0, 2**32)
told = st.builds(lambda split, seed: next(stories(split, seed)), st.sampled_from(SPLITS), seeds)
CONTROL = re.compile(r"<\||\|>|\[INST|</?s>|<[a-z_]+>")


@pytest.fixture(scope="module")
def many() -> list[Story]:
    return list(islice(stories("train", 7), 20_000))


def count(word: str | None, text: str) -> int:
    return len(re.findall(rf"\b{word}\b", text))


def key(request: Request) -> tuple[str | None, ...]:
    return request.kind, request.item, request.place, request.problem


@settings(max_examples=100, deadline=None)
@given(told)
def test_a_story_does_what_it_was_asked(story: Story) -> None:
    found = check(story.request, story.text)
    assert found.followed, (found, story.text)
    assert found.happy == story.happy, story.text
    assert 50 <= len(story.text.split()) <= 110
    assert story.request.name in names_for(story.request.kind)


@settings(max_examples=100, deadline=None)
@given(told)
def test_words_agree(story: Story) -> None:
    words = set(re.findall(r"[a-z]+", story.text.lower()))
    others = {"he", "him", "his"} if story.request.name in world.GIRLS else {"she", "her", "hers"}
    assert not words & others, story.text
    for article, sound in re.findall(r"\b([Aa]n?) ([a-z])", story.text):
        assert (article.lower() == "an") == (sound in "aeiou"), story.text
    assert not re.search(r"[{}]|  |\b(\w+) \1\b|[a-z]\n|[.] [a-z]", story.text.split("\n\n")[-1]), story.text


@settings(max_examples=100, deadline=None)
@given(told)
def test_names_and_things_are_repeated(story: Story) -> None:
    asked, text = story.request, story.text
    assert count(asked.name, text) >= 3 and count(asked.item, text) >= 3 and count(asked.place, text) >= 2, text
    assert count(asked.kind, text) >= 1 and count(story.helper, text) >= 2, text
    assert not asked.adjective or count(f"{asked.adjective} {asked.item}", text) >= 1, text
    assert (world.ABILITY_OF[story.helper] == world.PROBLEMS[asked.problem].ability) == story.able
    assert story.able or not story.happy


@settings(max_examples=100, deadline=None)
@given(told, told)
def test_another_request_is_not_followed(story: Story, other: Story) -> None:
    if story.request != other.request:
        assert not check(other.request, story.text).followed
    for field in ("kind", "name", "item", "place", "problem"):
        if getattr(story.request, field) != getattr(other.request, field):
            swapped = replace(story.request, **{field: getattr(other.request, field)})
            assert not check(swapped, story.text).followed, (field, story.text)


@settings(max_examples=100, deadline=None)
@given(told, st.data())
def test_damage_is_seen(story: Story, data: st.DataObject) -> None:
    asked, text = story.request, story.text

    def put(old: str, new: str, times: int = 0) -> str:
        return re.sub(rf"\b{old}\b", new, text, count=times)

    def one_of(words: object, but: str) -> str:
        return data.draw(st.sampled_from([word for word in list(words) if word != but]))  # type: ignore[call-overload]

    assert asked.name and asked.place
    for times in (0, 1):
        assert not check(asked, put(asked.item, one_of(world.ITEMS, asked.item), times)).item
        assert not check(asked, put(asked.place, one_of(world.PLACES, asked.place), times)).place
        assert not check(asked, put(asked.kind, one_of(world.KINDS, asked.kind), times)).hero
        assert not check(asked, put(asked.name, one_of(world.NAMES, asked.name), times)).complete
    assert not check(asked, put(asked.name, one_of(world.NAMES, asked.name))).hero
    if asked.adjective:
        look = one_of(world.ADJECTIVES, asked.adjective)
        assert not check(asked, put(f"{asked.adjective} {asked.item}", f"{look} {asked.item}", 1)).item
    sentences = re.split(r"(?<=\.) ", text)
    for cut in (" ".join(sentences[:-1]), text[: len(text) // 2], text[:-1], ""):
        assert not check(asked, cut).complete and not check(asked, cut).happy, cut


@settings(max_examples=100, deadline=None)
@given(told)
def test_a_mixed_ending_is_not_happy(story: Story) -> None:
    asked = story.request
    glad = f"{asked.name} smiled and took the {asked.item} home, happy again."
    sad = f"{asked.name} was sad and never saw the {asked.item} again."
    assert not check(asked, f"{story.text} {sad}").happy
    assert check(asked, f"{story.text} {glad}").happy == story.happy
    assert check(asked, f"  {story.text}\n") == check(asked, story.text)
    assert not check(asked, story.text.lower()).complete


@settings(max_examples=100, deadline=None)
@given(told)
def test_open_requests_take_any_name_and_place(story: Story) -> None:
    loose = replace(story.request, name=None, place=None)
    assert check(loose, story.text).followed
    for other in {"Tom", "Zoe"} - {story.request.name}:
        assert not check(loose, story.text.replace(str(story.request.name), str(other), 1)).followed


def facts_in(text: str) -> set[str]:
    known = {*world.NAMES, *world.KINDS, *world.ITEMS, *world.PLACES}
    return known & set(re.findall(r"\w+", text))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SPLITS), seeds)
def test_a_preferred_story_is_the_one_asked_for(split: Split, seed: int) -> None:
    pair = next(pair for pair in preferences(split, seed) if asks_for_a_story(pair))
    asked, chosen, rejected = (pair[side][-1]["content"] for side in ("prompt", "chosen", "rejected"))
    mood = check(next(stories("train", 0)).request, rejected).happy
    assert facts_in(asked) <= facts_in(chosen)
    assert mood or facts_in(asked) <= facts_in(rejected)


def asks_for_a_story(pair: dict[str, list[dict[str, str]]]) -> bool:
    """Whether a pair is of two stories, and about the first request."""
    before = [turn["role"] for turn in pair["prompt"] if turn["role"] != "system"]
    return before == ["user"] and not any(is_honest(pair, side) for side in ("chosen", "rejected"))


def is_honest(pair: dict[str, list[dict[str, str]]], side: str) -> bool:
    """Whether this side of a pair is the sentence for what is no request of a story."""
    return pair[side][0]["content"] in small_talk.ANSWERS.values()


def test_the_honest_sentence_is_right_for_small_talk_and_wrong_for_requests() -> None:
    pairs = list(islice(preferences("train", 5), 4000))
    small = [pair for pair in pairs if is_honest(pair, "chosen")]
    asked = [pair for pair in pairs if is_honest(pair, "rejected")]
    assert 0.03 < len(small) / len(pairs) < 0.05 and 0.002 < len(asked) / len(pairs) < 0.009
    for pair in asked:
        facts, told = (facts_in(pair[side][-1]["content"]) for side in ("prompt", "chosen"))
        assert facts and facts <= told
    assert all(len(facts_in(pair["rejected"][0]["content"])) > 2 for pair in small)


def test_every_pair_is_of_two_answers_to_one_prompt() -> None:
    pairs = list(islice(preferences("train", 5), 800))
    for pair in pairs:
        roles = [[turn["role"] for turn in pair[side]] for side in ("prompt", "chosen", "rejected")]
        assert roles[0][-1] == "user" and roles[1] == roles[2] == ["assistant"]
        assert pair["chosen"] != pair["rejected"]
    assert 0.5 < sum(not asks_for_a_story(pair) for pair in pairs) / len(pairs) < 0.6
    long = 100  # characters that no short answer has
    later = [pair for pair in pairs if len(pair["prompt"]) > 2]
    another = [pair for pair in later if pair["prompt"][-1]["content"].startswith(talk.BEFORE_NEXT)]
    assert 0.12 < len(another) / len(pairs) < 0.2 and all(len(pair["chosen"][0]["content"]) > long for pair in another)
    later = [pair for pair in later if pair not in another]
    again = [pair for pair in later if pair["prompt"][-1]["content"] in world.AGAIN]
    assert len(again) > 10 and len(later) - len(again) > 40
    for pair in again:
        moods = [
            check(next(stories("train", 0)).request, pair[side][0]["content"]).happy for side in ("chosen", "rejected")
        ]
        before = check(next(stories("train", 0)).request, pair["prompt"][-2]["content"]).happy
        assert moods == [not before, before]
        assert all(pair[side][0]["content"].startswith(world.ENDS[not before]) for side in ("chosen", "rejected"))


def test_pairs_are_told_apart_and_of_one_length() -> None:
    pairs = list(islice(filter(asks_for_a_story, preferences("train", 3)), 4000))
    chosen, rejected = ([pair[side][0]["content"] for pair in pairs] for side in ("chosen", "rejected"))
    anything = next(stories("train", 0)).request
    assert all(check(anything, text).happy for text in chosen)
    near_misses = sum(check(anything, text).happy for text in rejected) / len(rejected)
    assert 0.25 < near_misses < 0.35
    assert abs(sum(map(len, chosen)) / sum(map(len, rejected)) - 1) < 0.02
    words = [sum(len(text.split()) for text in side) for side in (chosen, rejected)]
    assert abs(words[0] / words[1] - 1) < 0.02


def test_conversations_are_well_formed_and_true() -> None:
    talks = [talk["messages"] for talk in islice(conversations("train", 5), 800)]
    turns = [[turn for turn in talk if turn["role"] != "system"] for talk in talks]
    for one in turns:
        assert [turn["role"] for turn in one] == ["user", "assistant"] * (len(one) // 2)
    assert 0.2 < sum(one[0]["role"] == "system" for one in talks) / len(talks) < 0.3
    assert 0.55 < sum(len(one) > 2 for one in turns) / len(turns) < 0.68
    anything = next(stories("train", 0)).request
    told = [one for one in turns if one[1]["content"] not in small_talk.ANSWERS.values()]
    assert 0.85 < len(told) / len(turns) < 0.92
    happy = [check(anything, one[1]["content"]).happy for one in told]
    assert 0.45 < sum(happy) / len(happy) < 0.55
    for first, one in zip(happy, told, strict=True):
        if len(one) == 4 and one[2]["content"] in world.AGAIN:
            assert check(anything, one[3]["content"]).happy != first


@settings(max_examples=100, deadline=None)
@given(told)
def test_answers_are_in_the_story(story: Story) -> None:
    answers = {question.kind: question.answer for question in questions(story)}
    assert answers.keys() | {"color"} == world.QUESTIONS.keys()
    assert ("color" in answers) == (story.request.adjective in world.COLORS)
    assert str(story.request.place) in answers["where"] and str(story.request.name) in answers["name"]
    assert answers["mood"].startswith("Yes" if story.happy else "No")
    assert ("could not help" in answers["helped"]) != story.happy
    for answer in answers.values():
        known = {*world.NAMES, *world.KINDS, *world.ITEMS, *world.PLACES, *world.HELPERS}
        assert {word for word in re.findall(r"\w+", answer) if word in known} <= set(re.findall(r"\w+", story.text))


def test_turns_are_of_every_kind_and_only_their_true_answer_is_right() -> None:
    asked = turns("dev", 0, 60)
    counts = dict.fromkeys(world.QUESTIONS, 6) | {"again": 7, "next": 7, "open": 7, "small talk": 30}
    assert Counter(turn.kind for turn in asked) == counts and counts.keys() == set(talk.TURNS)
    assert set(Counter(turn.kind for turn in turns("dev", 0, 2)).values()) == {1}
    assert asked == turns("dev", 0, 60) != turns("dev", 1, 60)
    for turn, other in zip(asked, asked[1:] + asked[:1], strict=True):
        assert [message["role"] for message in turn.messages] == ["user", "assistant"] * (len(turn.messages) // 2) + [
            "user"
        ]
        if turn.answer is not None:
            assert turn.is_right(turn.answer + "\n") and not turn.is_right(turn.answer + " And more.")
            assert not turn.is_right("")
            alike = turn.answer == other.answer or turn.kind == other.kind == "small talk"  # honest in other words
            assert alike or not turn.is_right(str(other.answer))
        else:
            assert not turn.is_right(small_talk.CAN_DO) and not turn.is_right("")


def story_turn(kind: str, story: Story, **asked: bool) -> Turn:
    return Turn(kind, [{"role": "user", "content": "Again"}], request=story.request, **asked)


@settings(max_examples=50, deadline=None)
@given(told)
def test_a_story_told_again_must_end_the_other_way(story: Story) -> None:
    assert story_turn("again", story, happy=story.happy).is_right(story.text)
    assert not story_turn("again", story, happy=not story.happy).is_right(story.text)


@settings(max_examples=50, deadline=None)
@given(told, told)
def test_what_a_request_leaves_open_may_be_anything(story: Story, other: Story) -> None:
    kind = story.request.kind
    of_kind = Request(kind, None, item="", adjective="", place=None, problem="")
    assert check(of_kind, story.text).followed
    assert check(of_kind, other.text).followed == (other.request.kind == kind)
    assert check(replace(of_kind, kind=""), other.text).followed
    assert not check(replace(of_kind, kind=""), f"{story.text} {other.text}").followed or story.text == other.text
    assert not check(replace(of_kind, kind=""), small_talk.CAN_DO).followed


def test_phrasings_of_small_talk_are_held_out_whole() -> None:
    for kind in small_talk.ANSWERS:
        by_split = [set(small_talk.phrasings(split, kind)) for split in SPLITS]
        assert all(by_split) and sum(map(len, by_split)) == len(set.union(*by_split))
        assert len(by_split[0]) > 3 * len(by_split[2])
    for slot, words in small_talk.SLOTS.items():
        assert not set(words[True].split()) & set(words[False].split()), slot
    known = {*world.KINDS, *world.ITEMS, *world.PLACES}
    for split in SPLITS:
        for text in (
            small_talk.draw(random.Random(i), split, small_talk.kind_of(random.Random(i))) for i in range(200)
        ):
            # What it is to refuse must not be a story of this world.
            assert not ("story" in text and known & set(re.findall(r"\w+", text))), text
            assert not re.search("[{}]", text)


def test_instructions_say_what_they_ask_for() -> None:
    asked = list(islice(prompts("test", 1), 800))
    for request, messages in asked:
        text = messages[0]["content"]
        assert len(messages) == 1 and messages[0]["role"] == "user"
        for word in (request.kind, request.name, request.item, request.adjective, request.place):
            assert not word or count(word, text) >= 1, (word, text)
        assert request.name or not any(count(name, text) for name in world.NAMES)
        assert request.place or not any(count(place, text) for place in world.PLACES)
    assert 0.1 < sum(request.name is None for request, _ in asked) / 800 < 0.2
    assert 0.1 < sum(request.place is None for request, _ in asked) / 800 < 0.2
    assert len(talk.ABOUT) + len(talk.ABOUT_PLACED) >= 12


def test_splits_share_no_combination(many: list[Story]) -> None:
    trained = {key(story.request) for story in many}
    tested = {key(story.request) for story in islice(stories("test", 7), 800)}
    assert not trained & tested
    for split in SPLITS:
        for story in islice(stories(split, 1), 100):
            asked = story.request
            assert split_of(asked.kind, asked.item, str(asked.place), asked.problem) == split
        for asked, _ in islice(prompts(split, 1), 100):
            assert split_of(asked.kind, asked.item, asked.place or "", asked.problem) == split


def test_the_streams_depend_on_split_and_seed_only() -> None:
    program = (
        "from itertools import islice; from hashlib import sha256\n"
        "from training.stories.tell import *; from training.stories.talk import *\n"
        "streams = [list(islice(f(s, 11), 30)) for f in (documents, conversations, preferences, prompts, stories)"
        " for s in ('train', 'dev', 'test')]\n"
        "import sys; sys.stdout.write(sha256(repr(streams).encode()).hexdigest())"
    )
    root = Path(__file__).resolve().parent.parent
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=root, env={**os.environ, "PYTHONHASHSEED": hashing},
            capture_output=True, text=True, check=True,
        ).stdout
        for hashing in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1
    assert list(islice(documents("train", 1), 5)) == list(islice(documents("train", 1), 5))
    assert next(documents("train", 1)) != next(documents("train", 2))


@given(told)
def test_an_introduction_repeats_the_facts_and_tells_no_mishap(story: Story) -> None:
    text = introduce(random.Random(0), story)
    assert count(story.request.name, text) >= 1 and count(story.request.kind, text) >= 1
    assert not check(story.request, text).problem
    assert {word for word in world.NAMES if count(word, text)} == {story.request.name}


def test_documents_are_introductions_short_stories_and_whole_ones_told_framed_or_asked_about() -> None:
    texts, many = list(islice(documents("train", 3), 1000)), list(islice(stories("train", 3, FORETOLD), 1000))
    told = [story.text for story in many]
    bare = sum(text == story for text, story in zip(texts, told, strict=True))
    framed = sum(text != story and text.endswith(story) for text, story in zip(texts, told, strict=True))
    asked = sum(text.startswith(story + "\n\n") for text, story in zip(texts, told, strict=True))
    assert 30 < bare < 100 and 40 < framed < 120 and 310 < asked < 400
    short = [(text, story) for text, story in zip(texts, many, strict=True) if text.count("\n\n") and "ends" in text]
    short = [(text, story) for text, story in short if story.text not in text]
    introduced = [text for text, story in zip(texts, told, strict=True) if story not in text and "ends" not in text]
    assert 110 < len(short) < 190 and bare + framed + asked + len(short) + len(introduced) == 1000
    for text, story in short:
        first, _, rest = text.partition("\n\n")
        again = rest.partition(world.ENDS[not story.happy])[2]
        for words, happy in ((first, story.happy), (again, not story.happy)):
            found = check(story.request, words)
            assert found.followed and found.happy == happy, text
    assert 0.4 < sum("\n\n" in text for text in introduced) / len(introduced) < 0.6
    for text in introduced:
        said, _, examined = text.partition("\n\n")
        facts = {*world.PLACES, *world.ITEMS, *world.NAMES, *world.KINDS} & set(re.findall(r"\w+", examined))
        assert facts <= set(re.findall(r"\w+", said)), text
    for text, story in zip(texts, many, strict=True):
        if again_asked := [line for line in text.splitlines() if line.startswith(world.AGAIN)]:
            assert world.ENDS[not story.happy] in again_asked[0]


def test_half_of_the_stories_say_first_and_once_more_how_they_end() -> None:
    many = list(islice(stories("train", 3, FORETOLD), 1000))
    foretold = [story for story in many if "This story ends" in story.text]
    assert 450 < len(foretold) < 550
    for story in foretold:
        assert story.text.startswith(world.ENDS[story.happy]) and f" {world.ENDS_SO[story.happy]} " in story.text
        assert check(story.request, story.text).followed and check(story.request, story.text).happy == story.happy


def test_no_fact_comes_after_a_rare_article() -> None:
    words = [*world.KINDS, *world.ADJECTIVES, *world.ITEMS, *world.HELPERS]
    assert not [word for word in words if word[0] in "aeiou"]


def test_statistics(many: list[Story]) -> None:
    texts = [story.text for story in many]
    assert len(set(texts)) > 0.999 * len(texts)
    # Each full request tells at least one story that no other request tells.
    heroes = sum(len(names_for(kind)) for kind in world.KINDS)
    things = sum(len(problem.items) * len(problem.places) for problem in world.PROBLEMS.values())
    assert heroes * things * (len(world.ADJECTIVES) + 1) >= 100_000_000
    assert 0.48 < sum(story.happy for story in many) / len(many) < 0.52
    shapes = Counter(story.shape for story in many)
    assert set(shapes) == set(SHAPES) and len(shapes) >= 5 and min(shapes.values()) > 0.12 * len(many)
    words = [len(text.split()) for text in texts]
    assert 70 < sum(words) / len(words) < 80 and min(words) >= 50 and max(words) <= 110
    assert sum('"' in text for text in texts) > 0.7 * len(texts)
    lengths = [[len(story.text) for story in many if story.happy == mood] for mood in (True, False)]
    means = [sum(side) / len(side) for side in lengths]
    assert abs(means[0] / means[1] - 1) < 0.03
    assert not any(CONTROL.search(text) for text in texts)


def test_the_world_is_rich_and_its_words_are_apart() -> None:
    assert len(world.KINDS) >= 28 and len(world.NAMES) >= 48 and len(world.ITEMS) >= 40 and len(world.PLACES) >= 24
    assert len(world.PROBLEMS) >= 20 and len(world.ENDINGS) >= 20
    assert Counter(end.happy for end in world.ENDINGS) == {True: 13, False: 13}
    groups = (world.KINDS, map(str.lower, world.NAMES), world.ITEMS, world.PLACES, world.HELPERS, world.ADJECTIVES)
    words = [word for group in groups for word in group]
    assert len(words) == len(set(words))
    for problem in world.PROBLEMS.values():
        assert len(problem.items) >= 3 and len(problem.places) >= 5 and problem.ability in world.ABILITIES


def test_no_control_token_is_spelled_in_chats() -> None:
    for split in SPLITS:
        for stream in (conversations(split, 2), preferences(split, 2)):
            assert not any(CONTROL.search(repr(talk)) for talk in islice(stream, 60))


def test_how_a_story_ended_can_be_read_off_one_word() -> None:
    for story in islice(stories("train", 1), 500):
        words = set(re.findall(r"[a-z]+", story.text.lower())) & {"happy", "sad"}
        assert words == {"happy" if story.happy else "sad"}, story.text
