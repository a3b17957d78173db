"""GSM8K's 1,319 test problems (arXiv 2110.14168).

Version 1: zero-shot, boxed answer.
Version 2: the file's problems are checked; four worked examples for base models. Chat prompts are as before.
"""

from eval.tasks.base import GREEDY, INSTRUCTION, Shot, Task
from eval.tasks.dataset import Dataset
from opd.rollout.engine import Sampling

SHOTS = (
    Shot(
        "A baker fills 3 trays with 12 rolls each and sells 20 of the rolls. How many are left?",
        r"The trays hold 3 * 12 = 36 rolls. After the sale 36 - 20 = 16 are left. The answer is $\boxed{16}$.",
    ),
    Shot(
        "Nadia earns $15 an hour and works 4 hours on each of 5 days. She spends $80. How much money does she keep?",
        r"She works 4 * 5 = 20 hours and earns 20 * 15 = 300 dollars. She keeps 300 - 80 = 220 dollars. "
        r"The answer is $\boxed{220}$.",
    ),
    Shot(
        "A tank of 90 litres is one third full. How many litres must be added until it is half full?",
        r"One third of 90 is 30 and one half is 45. So 45 - 30 = 15 litres are added. The answer is $\boxed{15}$.",
    ),
    Shot(
        "A shirt costs $40 and is sold at 25% off. Tom buys two of them. What does he pay?",
        r"The discount is 0.25 * 40 = 10 dollars, so one shirt costs 40 - 10 = 30 dollars and two cost 2 * 30 = 60. "
        r"The answer is $\boxed{60}$.",
    ),
)

TASK = Task(
    name="gsm8k",
    version=2,
    load=Dataset(
        task="gsm8k",
        hub={
            "dataset": "openai/gsm8k",
            "name": "main",
            "split": "test",
            "revision": "e53f048856ff4f594e959d75785d2c2d37b678ee",
        },
        file="gsm8k_test.jsonl",
        sha256="edfc2d363319fc2752ee9f2f7904c9bf13e9e14ca6d55fb6175aea7715fc5ed6",
        question="question",
        marker="####",
    ),
    instruction=INSTRUCTION,
    sampling=Sampling(samples=1, max_new_tokens=512, temperature=GREEDY),
    shots=SHOTS,
)
