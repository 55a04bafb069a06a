"""GenEval's verdict against a second implementation, written from the specification, over random detections."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from sdr1.evaluation.judges.verdict import Detection, relations, verdict

KINDS, COLOURS = ("dog", "cup"), ("red", "blue")
RELATIONS = ("left of", "right of", "above", "below")


def spec_relations(a, b):
    centre = lambda o: ((o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2)  # noqa: E731
    size = lambda o: (o.box[2] - o.box[0], o.box[3] - o.box[1])  # noqa: E731
    offsets = [centre(a)[i] - centre(b)[i] for i in (0, 1)]
    margins = [0.1 * (size(a)[i] + size(b)[i]) for i in (0, 1)]
    kept = [math.copysign(max(abs(o) - m, 0), o) for o, m in zip(offsets, margins)]
    if kept[0] == 0 and kept[1] == 0:
        return set()
    norm = math.hypot(*offsets)
    found = set()
    if kept[0] / norm < -0.5:
        found.add("left of")
    if kept[0] / norm > 0.5:
        found.add("right of")
    if kept[1] / norm < -0.5:
        found.add("above")
    if kept[1] / norm > 0.5:
        found.add("below")
    return found


def spec_verdict(detections, metadata):
    bar = 0.9 if metadata["tag"] == "counting" else 0.3

    def of(kind):
        ranked = sorted((d for d in detections if d.kind == kind), key=lambda d: d.score, reverse=True)
        return [d for d in ranked if d.score > bar][:16]

    for clause in metadata.get("exclude", []):
        if len(of(clause["class"])) >= clause["count"]:
            return False
    for clause in metadata["include"]:
        top = of(clause["class"])[: clause["count"]]
        if len(top) != clause["count"]:
            return False
        if "color" in clause and any(d.colour != clause["color"] for d in top):
            return False
        if "position" in clause:
            relation, index = clause["position"]
            target = metadata["include"][index]
            for other in of(target["class"])[: target["count"]]:
                if any(relation not in spec_relations(d, other) for d in top):
                    return False
    return True


boxes = st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
# Scores on, just above and below the two bars.
scores = st.sampled_from([0.2, 0.3, 0.31, 0.5, 0.9, 0.91, 0.99])
found = st.lists(
    st.builds(Detection, st.sampled_from(KINDS), scores, boxes, st.sampled_from(COLOURS)), max_size=8
)
clause = st.fixed_dictionaries(
    {"class": st.sampled_from(KINDS), "count": st.integers(1, 3)},
    optional={"color": st.sampled_from(COLOURS)},
)


@st.composite
def metadata(draw):
    include = draw(st.lists(clause, min_size=1, max_size=2))
    if len(include) == 2 and draw(st.booleans()):
        include[1]["position"] = [draw(st.sampled_from(RELATIONS)), 0]
    made = {"tag": draw(st.sampled_from(["counting", "position"])), "include": include}
    if draw(st.booleans()):
        made["exclude"] = [{"class": draw(st.sampled_from(KINDS)), "count": draw(st.integers(1, 4))}]
    return made


@settings(max_examples=300, deadline=None)
@given(found, metadata())
def test_verdicts_equal_the_specifications(detections, asked):
    assert verdict(detections, asked) == spec_verdict(detections, asked)


@settings(max_examples=200, deadline=None)
@given(boxes, boxes)
def test_relations_equal_the_specifications(one, two):
    a, b = Detection("dog", 1, one), Detection("cup", 1, two)
    assert relations(a, b) == spec_relations(a, b)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {opposite[each] for each in relations(a, b)} == relations(b, a)


def box(x: float, y: float, half: float = 5) -> Detection:
    return Detection("dog", 0.95, (x - half, y - half, x + half, y + half))


def test_a_position_needs_distance_beyond_a_tenth_of_both_sizes():
    # Sizes 10 and 10: the margin is 2 on each axis.
    assert relations(box(2, 0), box(0, 0)) == set()
    assert relations(box(4, 0), box(0, 0)) == set(), "(4 - 2) / 4 is one half, and has to be passed"
    assert relations(box(4.1, 0), box(0, 0)) == {"right of"}
    assert relations(box(50, 50), box(0, 0)) == {"right of", "below"}
    assert relations(box(0, -50), box(0, 0)) == {"above"}
    assert relations(box(0, 0), box(0, 0)) == set()


def test_counting_is_at_least_n_and_fewer_than_one_more():
    asked = {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
    }
    assert [verdict([box(0, 0)] * n, asked) for n in (1, 2, 3)] == [False, True, False]
    weak = Detection("dog", 0.9, (0, 0, 1, 1))
    assert verdict([box(0, 0)] * 2 + [weak], asked), "0.9 is not above 0.9"


def test_only_the_best_of_a_clause_are_asked_for_colour():
    asked = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
    better, worse = Detection("dog", 0.8, (0, 0, 1, 1), "blue"), Detection("dog", 0.7, (0, 0, 1, 1), "red")
    seen = []
    assert not verdict([worse, better], asked, lambda each: seen.append(each) or each.colour)
    assert seen == [better]


def test_at_most_sixteen_of_a_class_are_kept():
    asked = {"tag": "x", "include": [{"class": "dog", "count": 17}]}
    assert not verdict([box(0, 0)] * 20, asked)
