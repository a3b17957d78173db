"""The one grader: right and wrong answers in every form that models write, and junk that must not stop a run."""

import time

import pytest

from opd.grading.extract import Final, final_answer
from opd.rewards import grade

RIGHT = {
    "boxed": (r"so it is \boxed{42}.", "42"),
    "last box": (r"\boxed{1} no, \boxed{2}", "2"),
    "box before a number": (r"\boxed{7} in 3 steps", "7"),
    "nested braces": (r"\boxed{\frac{1}{\sqrt{4}}}", r"\frac{1}{2}"),
    "deeper braces": (r"\boxed{\text{A}_{\text{B}}}", r"\text{A}_{\text{B}}"),
    "last number": ("first 3, then 4, so 12", "12"),
    "worked addition": ("5+8=13,4+7+1=12:1023", "1023"),
    "full stop": ("The answer is 12.", "12"),
    "sentence end in the box": (r"\boxed{12.}", "12"),
    "thousands": ("it costs $1,234,567", "1234567"),
    "thousands in the answer": (r"\boxed{1000}", "1,000"),
    "latex thousands": (r"\boxed{1{,}000}", "1000"),
    "negative": ("x = -3", "-3"),
    "decimal": (r"\boxed{0.75}", "0.75"),
    "fraction as decimal": (r"\boxed{0.75}", r"\frac{3}{4}"),
    "fraction not reduced": (r"\boxed{\frac{6}{8}}", r"\frac{3}{4}"),
    "slash": (r"\boxed{3/4}", r"\frac{3}{4}"),
    "short fraction": (r"\boxed{\dfrac34}", r"\frac{3}{4}"),
    "root": (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
    "pi": (r"\boxed{\pi/2}", r"\frac{\pi}{2}"),
    "order of terms": (r"\boxed{x + 1}", "1+x"),
    "tuple": (r"\boxed{(1, 2)}", "(1,2)"),
    "percent left out": (r"\boxed{5}", "5.0"),
    "unclosed box falls back to the number": (r"\boxed{42", "42"),
}
WRONG = {
    "wrong": (r"\boxed{41}", "42"),
    "right before wrong": ("42, no, 41", "42"),
    "wrong box beside a right number": (r"\boxed{41} 42", "42"),
    "sign": ("-42", "42"),
    "prefix": ("421", "42"),
    "suffix": ("142", "42"),
    "no number": ("I do not know", "42"),
    "empty": ("", "42"),
    "empty box": (r"\boxed{}", "42"),
    "cut off before the answer": ("So 40 + 2 is", "42"),
    "cut off in the box": (r"So \boxed{\frac{4", "42"),
    "set of two": (r"\boxed{1,5}", "15"),
    "another letter": (r"\boxed{x}", "y"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_right_is_1(case):
    assert grade(*RIGHT[case]) == 1.0


@pytest.mark.parametrize("case", WRONG)
def test_wrong_is_0(case):
    assert grade(*WRONG[case]) == 0.0


def test_the_final_answer_is_the_last_box_or_the_last_number():
    assert final_answer(r"1 \boxed{a{b}c} 2") == Final("a{b}c", "boxed")
    assert final_answer("1 then 1,234.5 end") == Final("1,234.5", "last")
    assert final_answer("nothing") == Final("", "none")


REMARKS = {
    "to answer this": ("To answer this, note that there are 5 boxes. Each has 4 pens. So there are 20 pens.", "5"),
    "one of two boxes": (r"$\boxed{2}$ and $\boxed{3}$", "3"),
    "one of two solutions": ("The answer is $2$ and $3$.", "2"),
    "a bound": ("The answer is at least 18.", "18"),
}


@pytest.mark.parametrize("case", REMARKS)
def test_a_part_of_what_is_said_is_0(case):
    assert grade(*REMARKS[case]) == 0.0


JUNK = {
    "open braces": "{" * 10_000,
    "braces in a box": r"\boxed{" + "{" * 5_000 + "}" * 5_001,
    "boxes in boxes": r"\boxed{" * 1_500 + "1" + "}" * 1_500,
    "open boxes": r"\boxed{" * 1_500,
    "digits": "9" * 10_000,
    "digits in a box": r"\boxed{" + "9" * 10_000 + "}",
    "commas": "1,000," * 2_000,
    "fractions": r"\boxed{" + r"\frac{" * 1_600 + "}" * 1_601,
    "parentheses": r"\boxed{" + "(" * 9_000 + "}",
    "a power tower": r"\boxed{9^{9^{9^{9}}}}",
    "control characters": "\\boxed{\x00\x1b\ud800\uffff}",
    "dollars": "$" * 10_000,
    "backslashes": r"\boxed{" + "\\" * 9_999 + "}",
}


@pytest.mark.parametrize("case", JUNK)
def test_junk_is_0_and_never_raises_or_hangs(case):
    began = time.process_time()  # of this process: what it asks the algebra's may be killed
    assert grade(JUNK[case], "42") == 0.0
    assert time.process_time() - began < 4


def test_a_long_answer_is_still_equal_as_text():
    text = "a" * 1_000
    assert grade(rf"\boxed{{{text}}}", text) == 1.0


def test_a_long_answer_is_not_read_as_mathematics(monkeypatch):
    def slow(*_: object, **__: object) -> None:
        raise AssertionError("a long answer was parsed")

    monkeypatch.setattr("opd.grading.equal.same_mathematics", slow)
    assert grade(r"\boxed{" + "1+" * 1_000 + "1}", "1001") == 0.0
