"""Prompts: what the model reads, which rows are dropped and counted, and in which order epochs give them."""

import copy
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from opd.batch import Prompt
from opd.config import PromptSettings
from opd.errors import DataError
from opd.prompts import PromptSet, completion_text, load_prompts, other_template_warning, render, template_warning

TEMPLATE = "{% for m in messages %}{{ '<pad>' if m['role'] == 'system' else '<unk>' }}{{ m['content'] }}{% endfor %}"
GENERATION = "{% if add_generation_prompt %}={% endif %}{{ note or '' }}"


@pytest.fixture
def tokenizer(toy: Path):
    """The toy's tokenizer with roles that show: <pad> system, <unk> any other, and = where the model speaks."""
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    tokenizer.chat_template = TEMPLATE + GENERATION
    return tokenizer


@pytest.fixture
def data(tmp_path: Path):
    """Rows → the path of a JSONL file that holds them."""

    def write(*rows: dict) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_a_question_is_read_in_the_chat_template(tokenizer):
    ids = render(
        "1+2", tokenizer, instruction=",", system="0", template_settings={"note": "7"}
    )  # what the model reads, up to where it begins to speak
    assert tokenizer.decode(ids) == "<pad>0<unk>1+2,=7"
    assert tokenizer.decode(render("1+2", tokenizer)) == "<unk>1+2="


def test_chat_messages_keep_their_roles_and_the_last_takes_the_instruction(tokenizer):
    messages = [{"role": "system", "content": "1"}, {"role": "user", "content": "2"}]
    assert tokenizer.decode(render(messages, tokenizer, instruction=",")) == "<pad>1<unk>2,="
    assert messages[1]["content"] == "2", "the data is left as it was"


def test_messages_whose_text_comes_in_parts_are_read_and_other_parts_named(tokenizer, data):
    def asked(*parts: dict | None) -> PromptSet:
        content = list(parts) if parts != (None,) else None
        path = data({"question": [{"role": "user", "content": content}]})
        return load_prompts(PromptSettings(path=path, instruction=","), tokenizer)

    (prompt,) = asked({"type": "text", "text": "1+"}, {"type": "text", "text": "2"}).prompts
    assert tokenizer.decode(prompt.token_ids) == "<unk>1+2,="
    for parts in ([{"type": "image", "url": "x"}], [None]):
        with pytest.raises(DataError, match=r"row 1: column 'question' holds .*a list of chat messages of text"):
            asked(*parts)


def test_a_teacher_with_another_chat_template_is_said(tokenizer):
    teacher, settings = copy.deepcopy(tokenizer), PromptSettings(path="p.jsonl")
    assert other_template_warning(settings, tokenizer, teacher) is None
    teacher.chat_template = "0" + TEMPLATE + GENERATION
    line = other_template_warning(settings, tokenizer, teacher)
    assert line.startswith("warning: the teacher's own chat template writes '0") and "\n" not in line
    teacher.chat_template = None
    assert other_template_warning(settings, tokenizer, teacher) is None


def test_settings_that_a_template_does_not_read_are_said(tokenizer):
    given = PromptSettings(path="p.jsonl", chat_template_kwargs={"note": "7", "enable_thinkng": False})
    assert "prompts.chat_template_kwargs enable_thinkng changes no prompt" in template_warning(given, tokenizer)
    for fine in ({"note": "7"}, {}):
        assert template_warning(PromptSettings(path="p.jsonl", chat_template_kwargs=fine), tokenizer) is None


@pytest.mark.parametrize(
    ("roles", "system", "said"),
    [
        (["user", "assistant"], None, "row 1: the messages of column 'question' end with 'assistant'"),
        (["system", "user"], "be brief", "hold a system message, and prompts.system gives another"),
    ],
)
def test_messages_that_are_no_prompt_are_named(roles, system, said, tokenizer, data):
    path = data({"question": [{"role": role, "content": "1"} for role in roles]})
    with pytest.raises(DataError, match=said):
        load_prompts(PromptSettings(path=path, system=system), tokenizer)


def test_other_columns_travel_with_the_prompt(tokenizer, data):
    path = data({"question": "1+2", "solution": 3, "domain": "sums"})
    (prompt,) = load_prompts(PromptSettings(path=path, answer="solution"), tokenizer).prompts
    assert prompt.extra == {"solution": 3, "domain": "sums", "answer": "3"}
    assert prompt.index == 0 and tokenizer.decode(prompt.token_ids) == "<unk>1+2="


def test_without_an_answer_nothing_is_graded(tokenizer, data):
    (prompt,) = load_prompts(PromptSettings(path=data({"question": "1"})), tokenizer).prompts
    assert "answer" not in prompt.extra


def test_answer_after_a_marker_takes_what_follows_the_last_one(tokenizer, data):
    path = data({"question": "1", "answer": "2 #### 3\n#### 1,234 "})
    (prompt,) = load_prompts(PromptSettings(path=path, answer="answer", answer_after="####"), tokenizer).prompts
    assert prompt.extra["answer"] == "1,234"


def test_too_long_and_duplicate_prompts_are_dropped_and_counted(tokenizer, data):
    path = data(*({"question": q} for q in ("1", "12345", "2", "1", "1", "123456")))
    found = load_prompts(PromptSettings(path=path, max_tokens=6), tokenizer)
    assert [tokenizer.decode(p.token_ids) for p in found.prompts] == ["<unk>1=", "<unk>2="]
    assert (found.too_long, found.duplicates) == (2, 2)
    assert [p.index for p in found.prompts] == [0, 1]
    assert len(load_prompts(PromptSettings(path=path, max_tokens=7), tokenizer).prompts) == 3, (
        "max_tokens itself still fits"
    )


def test_parquet_reads_as_jsonl_does(tokenizer, data, tmp_path):
    rows = [{"question": "1+2", "answer": "3"}, {"question": "3+4", "answer": "7"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    by_name = [PromptSettings(path=path, answer="answer") for path in (data(*rows), str(tmp_path / "data.parquet"))]
    first, second = (load_prompts(settings, tokenizer) for settings in by_name)
    assert first == second and len(first.prompts) == 2


def test_an_empty_parquet_file_says_so(tokenizer, tmp_path):
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([], pyarrow.schema([("question", pyarrow.string())])), path)
    with pytest.raises(DataError, match="no prompt is left"):
        load_prompts(PromptSettings(path=str(path)), tokenizer)


def numbered(total: int) -> PromptSet:
    return PromptSet([Prompt(i, [i]) for i in range(total)], 0, 0)


@pytest.mark.parametrize(("total", "count"), [(7, 3), (4, 4), (3, 8), (1, 2)])
def test_each_epoch_is_a_permutation_and_none_is_lost_between(total, count):
    prompts = numbered(total)
    steps = [[p.index for p in prompts.of_step(step, count, seed=5)] for step in range(2 * total)]
    assert all(len(step) == count for step in steps)
    said = [index for step in steps for index in step]
    epochs = [said[start : start + total] for start in range(0, len(said), total)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert len(epochs) == 2 * count and set(Counter(said).values()) == {2 * count}


def test_order_depends_on_seed_and_epoch_alone():
    prompts = numbered(50)
    epoch = [p.index for p in prompts.of_step(0, 50, seed=0)]
    assert epoch == [p.index for step in range(5) for p in prompts.of_step(step, 10, seed=0)]
    assert epoch != [p.index for p in prompts.of_step(1, 50, seed=0)], "a new order each epoch"
    assert epoch != [p.index for p in prompts.of_step(0, 50, seed=1)]
    assert epoch != sorted(epoch)


def words(*texts: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: ids 0 to 2 are special, and thoughts' marks are too."""
    special = ["<end>", "<think>", "</think>"]
    model = Tokenizer(WordLevel({text: i for i, text in enumerate([*special, *texts])}, unk_token="<end>"))
    model.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<end>", additional_special_tokens=["<think>", "</think>"]
    )


def test_a_completions_text_keeps_the_marks_of_a_thought_and_no_other_special_token():
    tokenizer = words("seven ", "7")
    assert tokenizer.decode([3, 2, 4, 0], skip_special_tokens=True) == "seven 7", "the grader would see no thought end"
    assert completion_text(tokenizer, [3, 2, 4, 0]) == "seven </think>7"
    assert completion_text(tokenizer, [1, 3, 0]) == "<think>seven "
