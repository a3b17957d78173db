"""MATH-500: 500 of MATH's test problems (arXiv 2103.03874; the subset of arXiv 2305.20050).

Version 1: zero-shot, boxed answer, mean of 16 samples at temperature 1.
"""

from eval.tasks.base import INSTRUCTION, MEAN_AT_16, Shot, Task
from eval.tasks.dataset import Dataset

SHOTS = (
    Shot(
        "What is the sum of the roots of $x^2 - 7x + 10 = 0$?",
        r"The equation is $(x - 2)(x - 5) = 0$, so the roots are 2 and 5, and their sum is $\boxed{7}$.",
    ),
    Shot(
        r"Simplify $\frac{2^5 \cdot 3^2}{2^3 \cdot 3^3}$.",
        r"Powers of one base subtract: $2^{5-3} \cdot 3^{2-3} = 4 \cdot \frac{1}{3}$, which is $\boxed{\frac{4}{3}}$.",
    ),
    Shot(
        "A fair die is rolled twice. What is the probability that the sum is 5?",
        r"Of 36 equally likely outcomes, $(1,4), (2,3), (3,2), (4,1)$ have the sum 5. The probability is "
        r"$\frac{4}{36} = \boxed{\frac{1}{9}}$.",
    ),
    Shot(
        r"For which $x$ is $|x - 3| < 2$? Give your answer in interval notation.",
        r"It says $-2 < x - 3 < 2$, hence $1 < x < 5$, which is the interval $\boxed{(1, 5)}$.",
    ),
)

TASK = Task(
    name="math500",
    version=1,
    load=Dataset(
        task="math500",
        hub={
            "dataset": "HuggingFaceH4/MATH-500",
            "split": "test",
            "revision": "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        },
        file="math500.jsonl",
        sha256="cc976e62f0457b6e026bf188f8a6f3d8c00675baaf63cf54c8a2c311b096118b",
    ),
    instruction=INSTRUCTION,
    sampling=MEAN_AT_16,
    shots=SHOTS,
)
