"""Which answer is the final one, and by which rule."""

import pytest

from opd.grading.extract import RULES, Final, final_answer

CASES = {
    "last box": (r"\boxed{1}, no, \boxed{\frac{1}{2}} it is", Final(r"\frac{1}{2}", "boxed")),
    "a box before a phrase": (r"\boxed{3}. The answer is 4", Final("3", "boxed")),
    "a box without braces": (r"thus $\boxed 7$.", Final("7", "boxed")),
    "an fbox": (r"\fbox{7}", Final("7", "boxed")),
    "an open box": (r"the answer is 5, \boxed{\frac{4", Final(r"5, \boxed{\frac{4", "phrase")),
    "gsm8k": ("16 - 3 = 13\n#### 13", Final("13", "phrase")),
    "markdown": ("**Final Answer:** 12 apples.", Final("12 apples", "phrase")),
    "in dollars": (r"The answer is $\$18.90$.", Final(r"\$18.90", "phrase")),
    "on the next line": ("The answer is:\n\\[ x^2 \\]", Final("x^2", "phrase")),
    "decimal": ("the answer is 3.5. Done 9", Final("3.5", "phrase")),
    "last phrase": ("The answer is 3. Wait: the answer is 4.", Final("4", "phrase")),
    "last number": ("first 3, then 1,204.5 of them", Final("1,204.5", "last")),
    "last expression": (r"which gives $x = 2\sqrt{3}$.", Final(r"x = 2\sqrt{3}", "last")),
    "a number after an expression": (r"$x^2$ and so 9", Final("9", "last")),
    "a remark about it": ("The final answer is 18. This answer is correct.", Final("18", "phrase")),
    "a check": ("The final answer is 18. To check the answer: 18/2 = 9, 9*2=18.", Final("18", "phrase")),
    "a hope": ("She makes 18 dollars. I hope this answer is helpful!", Final("18", "last")),
    "a note": ("Total: 18\n\nNote: my answer is based on 7 days a week.", Final("18", "last")),
    "a reason": ("So the answer is 18, since 20 - 2 = 18.", Final("18", "phrase")),
    "a sentence": ("**Answer:** 16 - 7 = 9 eggs, so she makes 9 * 2 = 18 dollars.", Final("18", "phrase")),
    "a worded sentence": ("**Answer:** Jo sells 9 eggs, so she makes 9 * 2 = 18 dollars.", Final("18", "phrase")),
    "to answer": ("To answer this, note that there are 5. So there are 20 pens.", Final("20", "last")),
    "a computation": ("The answer is 9 * 2 = 18 dollars.", Final("18 dollars", "phrase")),
    "two solutions": ("The answer is $x=2$ or $x=3$.", Final("x=2,x=3", "phrase")),
    "two boxes": (r"So $\boxed{2}$ and $\boxed{3}$.", Final("2,3", "boxed")),
    "boxes with a comma": (r"1 \boxed{2}, \boxed{3}", Final("2,3", "boxed")),
    "boxes that are equal": ("$\\boxed{2}$ $\\boxed{2}$", Final("2", "boxed")),
    "boxes far apart": ("So \\boxed{2}\n\n\\boxed{3}", Final("3", "boxed")),
    "a name": ("The answer is Evelyn. My answer is correct.", Final("Evelyn", "phrase")),
    "that the answer is": ("We see that the answer is 18. It took 3 days.", Final("18", "phrase")),
    "leads to the answer": ("This leads to the final answer: 18. It took 3 days.", Final("18", "phrase")),
    "an option": ("so the answer is option B.", Final("B", "phrase")),
    "an aside": ("The answer is 18 eggs (9 per day).", Final("18 eggs", "phrase")),
    "a doubt": ("The answer is 25 (or maybe 24).", Final("25 (or maybe 24)", "phrase")),
    "a bound": ("The answer is at least 18.", Final("at least 18", "phrase")),
    "a worked answer": ("Answer: 3 + 4 = 7 apples. Then 7 * 2 = 14.", Final("14", "phrase")),
    "a checked answer": ("Answer: 9 * 2 = 18. Check: 18 / 2 = 9.", Final("18", "phrase")),
    "an equation": ("The answer is $0.56 = 56%$.", Final("0.56 = 56%", "phrase")),
    "a choice": ("The correct answer is (B). It follows from 2.", Final("(B)", "phrase")),
    "nothing": ("I do not know.", Final("", "none")),
    "a thought that ended": (r"<think>\boxed{1}</think> So \boxed{2}", Final("2", "boxed")),
    "a thought that never ended": (r"<think>it is \boxed{1}", Final("", "unfinished")),
    "a second thought": (r"<think>a</think> <think>it is \boxed{1}", Final("", "unfinished")),
    "an answer in the thought alone": (r"<think>\boxed{1}</think>", Final("", "none")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rule_that_fires(case: str):
    completion, expected = CASES[case]
    assert final_answer(completion) == expected
    assert expected.rule in RULES


def test_a_prompt_that_opened_the_thought_needs_its_end():
    assert final_answer(r"so \boxed{1}", thinking=True) == Final("", "unfinished")
    assert final_answer(r"so \boxed{1}</think>\boxed{2}", thinking=True) == Final("2", "boxed")
