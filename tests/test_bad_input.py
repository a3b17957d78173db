"""Bad input is one line on stderr (value, reason, way out), exit code 2; no weight is loaded, no file written."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BioGptConfig, LlamaConfig, OpenAIGPTConfig

from opd.batch import Rollout
from opd.cli import main
from opd.config import StudentSettings
from opd.doctor import check_checkpointing, login_warning
from opd.errors import ModelError
from opd.models import dropout_rates, load_tokenizer
from opd.prompts import load_prompts
from opd.recipe_text import load_recipe, parse_recipe
from opd.rollout.files import write_rollouts
from opd.run import RunFolder
from opd.teacher.settings import LocalTeacherSettings

BOTH = pytest.mark.parametrize("command", ["train", "doctor"])

OVERRIDES = {
    "unknown key": ("stepz=3", ["'stepz'", "did you mean 'steps'?"]),
    "unknown key, deep": ("optimizer.warmupp=3", ["'optimizer.warmupp'", "'warmup'"]),
    "unknown key in a selector": ("loss.0.select.kep=0.3", ["'loss.0.select.kep'", "'keep'"]),
    "another selector's key": ("loss.0.select={type: random, clip: 0.5}", ["'loss.0.select.clip'", "known keys"]),
    "unknown key in an objective": ("loss.0.objective={type: jsd, betta: 0.3}", ["objective.betta", "'beta'"]),
    "unknown key in a term": ("loss.0.wait=0.3", ["'loss.0.wait'", "'weight'"]),
    "key like nothing": ("qqqq=3", ["'qqqq'", "known keys: name, student, teacher"]),
    "missing key": ("loss.0={select: {type: all}}", ["'loss.0.objective'", "needs it"]),
    "no type": ("loss.0.objective={}", ["loss.0.objective", "no 'type'", "'reverse_kl', 'forward_kl', 'jsd'"]),
    "word for a number": ("steps=many", ["steps can't be 'many'", "integer", "Optimizer steps"]),
    "fraction of a step": ("steps=2.5", ["steps can't be 2.5", "integer"]),
    "number for a word": ("student.model=3", ["student.model can't be 3", "string", "Hugging Face id"]),
    "list for a number": ("optimizer.lr=[1, 2]", ["optimizer.lr can't be [1, 2]", "number"]),
    "word for keys": ("student=gpt2", ["student can't be 'gpt2'", "give model, revision"]),
    "number for a selector": ("loss.0.select=3", ["loss.0.select can't be 3", "'soft_or'"]),
    "keys for a list": ("loss={}", ["loss can't be {}", "list"]),
    "no terms": ("loss=[]", ["loss can't be []", "at least 1"]),
    "null": ("steps=", ["steps can't be None", "integer"]),
    "zero steps": ("steps=0", ["steps can't be 0", "greater than 0"]),
    "share 0": ("loss.0.select.keep=0", ["loss.0.select.keep can't be 0", "greater than 0"]),
    "share 1.5": ("loss.0.select.keep=1.5", ["loss.0.select.keep can't be 1.5", "less than or equal to 1"]),
    "share -1": ("loss.0.select.clip=-1", ["loss.0.select.clip can't be -1", "greater than 0"]),
    "share NaN": ("loss.0.select.keep=.nan", ["loss.0.select.keep can't be nan"]),
    "unknown selector": ("loss.0.select.type=sof_or", ["no type 'sof_or'", "did you mean 'soft_or'", "'entropy'"]),
    "unknown objective": ("loss.0.objective.type=nkd", ["no type 'nkd'", "'reverse_kl', 'forward_kl', 'jsd'"]),
    "unknown engine": ("rollout.type=sglang", ["rollout.type can't be 'sglang'", "'vllm'", "'transformers'"]),
    "unknown teacher": ("teacher.type=served", ["teacher.type can't be 'served'", "'local'"]),
    "unknown precision": ("precision=fp16", ["precision can't be 'fp16'", "'bf16' or 'fp32'"]),
    "no =": ("steps", ["override 'steps' has no '='", "key.path=value"]),
    "not YAML": ("steps={a: [}", ["override 'steps={a: [}'", "not YAML"]),
    "python object": ("steps=!!python/object/apply:os.system [ls]", ["not YAML", "os.system"]),
    "no such item": ("loss.7.weight=1", ["override 'loss.7.weight=1' names no place", "loss.0.weight=1"]),
    "item by a word": ("loss.x.weight=1", ["override 'loss.x.weight=1' names no place"]),
    "below a number": ("steps.a.b=1", ["override 'steps.a.b=1' names no place"]),
    "below a word": ("student.model.x=1", ["override 'student.model.x=1' names no place"]),
    "two sources": ("prompts.dataset=a/b", ["prompts: give exactly one of 'dataset'", "'path'"]),
    "hub key for a file": ("prompts.split=test", ["'split'", "no effect", "remove"]),
    "answer_after alone": ("prompts={path: x.jsonl, answer_after: x}", ["'answer_after'", "'answer'"]),
    "ignored precision": ("head_precision=fast", ["'head_precision: fast'", "no effect", "remove"]),
    "ignored floor": ("optimizer={schedule: linear, min_lr_share: 0.1}", ["'min_lr_share'", "'linear'", "remove"]),
    "ignored share": ("loss.0.select={type: soft_or, choose: gate, keep: 0.3}", ["'keep'", "no effect", "remove"]),
    "path of no record": ("rollout.path=x", ["'path'", "recorded", "both or neither"]),
    "an engine's setting and no engine": (
        "rollout={type: recorded, path: x, tensor_parallel: 2}",
        ["'rollout.tensor_parallel' has no effect", "recorded rollouts without evaluate start no engine", "remove it"],
    ),
    "budget below a rollout": ("token_budget=31", ["token_budget 31", "16", "= 32", "raise it to 32"]),
    "beyond the context": ("prompts.max_tokens=120", ["student", "128 tokens", "= 136", "lower"]),
    "unknown task": ("evaluate.task=gsm9k", ["no task 'gsm9k'", "gsm8k, arithmetic"]),
    "too many problems": ("evaluate={task: arithmetic, problems: 30000}", ["30,000", "20,000", "ask for fewer"]),
    "no model folder": ("student.model=/no/where", ["'/no/where'", "folder"]),
    "no teacher folder": ("teacher.model=/no/where", ["'/no/where'", "folder"]),
    "no such model": ("student.model=nobody/nothing", ["'nobody/nothing'", "give a local folder"]),
    "no data": ("prompts.path=none.jsonl", ["no file at prompts.path 'none.jsonl'", "give a .jsonl"]),
    "data of no known kind": ("prompts.path=data.csv", ["'data.csv'", "neither .jsonl nor .parquet"]),
    "no column": ("prompts.question=quest", ["no column 'quest'", "it has question, answer"]),
    "no answer column": ("prompts.answer=solution", ["no column 'solution'", "it has question, answer"]),
    "no marker": ("prompts.answer_after='####'", ["row 1", "'####'", "answer_after"]),
    "all prompts too long": ("prompts.max_tokens=1", ["64 longer than prompts.max_tokens 1", "raise max_tokens"]),
    "no hub data": (
        "prompts={dataset: nobody/nothing, max_tokens: 16}",
        ["prompts.dataset 'nobody/nothing'", "prompts.path"],
    ),
    "a setting of another engine": ("rollout.kv_cache_mib=64", ["rollout.kv_cache_mib", "transformers", "remove"]),
    "more prompts a step than there are": ("prompts_per_step=1000", ["prompts_per_step 1000", "prompts there are"]),
    "an advantage that nothing reads": ("advantage=reward", ["'advantage: reward' has no effect", "remove it"]),
    "a selector without its advantage": ("loss.0.select={type: d3s}", ["'d3s' needs an advantage", "reward"]),
    "a ramp out of bounds": ("loss.0.select.keep={start: 0.5, end: 2}", ["loss.0.select.keep.end", "2"]),
    "a ramp's unknown key": ("loss.0.select.keep={start: 0.5, end: 1, shap: linear}", ["keep.shap", "'shape'"]),
    "a head to share with nobody": (
        "teacher.head=by_vocabulary",
        ["'teacher.head: by_vocabulary'", "there is one rank", "launch more", "teacher.head=auto"],
    ),
    "a teacher to share with nobody": (
        "teacher.shard=zero3",
        ["'teacher.shard: zero3'", "there is one rank", "launch more", "teacher.shard=none"],
    ),
    "a teacher in main memory anyway": (
        "teacher.offload=true",
        ["'teacher.offload: true'", "no effect", "GPU", "remove"],
    ),
    "unknown way to share a teacher": ("teacher.shard=zero2", ["teacher.shard can't be 'zero2'", "'none' or 'zero3'"]),
    "a layer that is not there": (
        "student.lora={targets: [q_prj]}",
        ["student.lora.targets", "'q_prj'", "did you mean 'q_proj'", "down_proj, gate_proj"],
    ),
    "an adapter on the embedding": ("student.lora={targets: embed_tokens}", ["no linear layer", "'embed_tokens'"]),
    "adapters on nothing": ("student.lora={targets: []}", ["student.lora.targets can't be []", "at least 1"]),
    "adapters with dropout": ("student.lora={dropout: 0.1}", ["dropout", "adapters drop nothing out"]),
    "adapters of no rank": ("student.lora={rank: 0}", ["student.lora.rank can't be 0", "greater than 0"]),
    "unknown key of adapters": ("student.lora={q: 8}", ["'student.lora.q'", "known keys", "rank"]),
    "another trainer's rank": ("student.lora={r: 8}", ["'student.lora.r'", "write 'rank'"]),
    "another trainer's rate": ("learning_rate=1e-5", ["'learning_rate'", "write 'optimizer.lr'"]),
    "another trainer's parallelism": ("tensor_parallel_size=2", ["write 'rollout.tensor_parallel'"]),
    "another trainer's batch": ("per_device_train_batch_size=1", ["prompts_per_step", "token_budget"]),
    "a cut distribution": ("rollout.top_p=0.9", ["'rollout.top_p'", "whole distribution"]),
    "adapters without settings": ("student.lora=true", ["'lora' can't be True", "rank, alpha"]),
    "a hub without an owner": ("hub={repo: mine}", ["hub.repo can't be 'mine'; hub.repo means: user/name"]),
    "unknown place of the head": ("teacher.head=sharded", ["teacher.head can't be 'sharded'", "'by_vocabulary'"]),
    "ranks that can't be cut": (
        "rollout={type: vllm, max_new_tokens: 16, tensor_parallel: 2}",
        ["rollout.tensor_parallel 2", "the 1 ranks of this machine", "multiple"],
    ),
    "a level without sleep": ("rollout={sleep: false, sleep_level: 2}", ["'sleep_level' has no effect", "'sleep'"]),
    "no name on the hub": ("hub={repo: mine}", ["hub.repo can't be 'mine'", "user/name"]),
    "nobody on the hub": ("hub={repo: ann/tiny}", ["'ann/tiny'", "hf auth login", "opd push"]),
    "no recorded rollouts": (
        "rollout={type: recorded, path: none, max_new_tokens: 16}",
        ["no recorded", "none/step-000001.jsonl"],
    ),
    "tracker that is not installed": ("metrics.trackers=[wandb]", ["wandb", "not installed", "pip install"]),
    "offload without a GPU": (
        "student.gradient_checkpointing=offload",
        ["student.gradient_checkpointing is offload", "there is no GPU", "set it to true"],
    ),
    "a kind of checkpointing that is none": (
        "student.gradient_checkpointing=disk",
        ["student.gradient_checkpointing can't be 'disk'", "'offload'"],
    ),
    "more ranks a sequence than there are": (
        "sequence_parallel_size=2",
        ["sequence_parallel_size 2", "the number of processes, 1", "--num_processes 2"],
    ),
    "no rank a sequence": ("sequence_parallel_size=0", ["sequence_parallel_size can't be 0", "greater than 0"]),
    "kernel that is not installed": ("student.attention=flash_attention_2", ["flash_attn", "not installed"]),
}
"""What is wrong → an override that makes it so, and what the message must name."""


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts processes or an engine, loads a model, or asks for an address fails the test."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded, or a name looked up though HF_HUB_OFFLINE is set")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    monkeypatch.setattr("opd.distributed.start", fail)
    monkeypatch.setattr("opd.models.load_model", fail)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    monkeypatch.setattr("eval.runner.start_engine", fail)
    monkeypatch.setattr("opd.rollout.start.start_engine", fail)


@pytest.fixture
def recipe(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe that passes, as data; the test stands in an empty folder, and `write` stores it there; no wandb."""
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    return {
        "student": {"model": str(toy / "student")},
        "teacher": {"type": "local", "model": str(toy / "teacher")},
        "prompts": {"path": str(toy / "train.jsonl"), "answer": "answer", "max_tokens": 16},
        "rollout": {"type": "transformers", "samples_per_prompt": 2, "max_new_tokens": 16},
        "loss": [{"select": {"type": "soft_or", "keep": 0.5}, "objective": {"type": "reverse_kl"}}],
        "steps": 2,
        "prompts_per_step": 2,
        "precision": "fp32",
    }


def write(recipe: dict[str, Any]) -> str:
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    return "r.yaml"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """argv → (exit code, stdout, stderr) of the command in this process."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["opd", *argv])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


@pytest.fixture
def refused(ended):
    """argv → its message, after it was checked to be one line, with exit code 2, and nothing written below runs/."""

    def run(*argv: str) -> str:
        before = tree(Path("runs"))
        code, out, err = ended(*argv)
        assert_one_line(code, out, err)
        assert tree(Path("runs")) == before
        return err

    return run


def assert_one_line(code: int, out: str, err: str) -> None:
    assert (code, out) == (2, ""), err
    assert err.startswith("opd: ") and err.endswith("\n") and err.count("\n") == 1, err


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, and the folder itself."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in [folder, *folder.rglob("*")] if p.exists()}


def contains(message: str, *words: str) -> None:
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_the_recipe_itself_passes(recipe, ended):
    code, out, err = ended("doctor", write(recipe))
    assert code == 0 and "all is well" in out and err == ""


@BOTH
@pytest.mark.parametrize("case", OVERRIDES)
def test_a_bad_value_is_named(case, command, recipe, refused):
    override, words = OVERRIDES[case]
    contains(refused(command, write(recipe), override), *words)


FILES = {
    "not YAML": ("student: {model: [\n", ["r.yaml", "not plain YAML", "line 2"]),
    "binary": (b"\xff\xfe\x00\x81", ["r.yaml", "not plain YAML"]),
    "python objects": ("student: !!python/object/apply:os.system ['touch pwned']\n", ["not plain YAML", "os.system"]),
    "key twice": ("steps: 1\nseed: 0\nsteps: 2\n", ["key 'steps' stands twice", "line 1"]),
    "empty": ("", ["'r.yaml' is empty", "opd schema"]),
    "comments only": ("# nothing\n", ["'r.yaml' is empty"]),
    "a list": ("- 1\n", ["r.yaml holds a list"]),
    "a word": ("steps\n", ["r.yaml holds a str"]),
    "number for a key": ("1: 2\n", ["unknown key '1'"]),
}


@BOTH
@pytest.mark.parametrize("case", FILES)
def test_a_bad_recipe_file_is_named(case, command, recipe, refused):
    content, words = FILES[case]
    Path("r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    contains(refused(command, "r.yaml"), *words)
    assert not Path("pwned").exists()


@BOTH
def test_a_missing_recipe_file_is_named(command, recipe, refused):
    contains(refused(command, "none.yaml"), "'none.yaml'", "No such file", "give the path")
    contains(refused(command, "."), "'.'", "directory")


GOOD_ROW = '{"question": "1+1=", "answer": "2"}'
DATA = {
    "empty": ("", ["'data.jsonl' is empty", "at least one row"]),
    "blank": ("\n\n", ["no prompt is left of prompts.path 'data.jsonl'"]),
    "broken line": (f'{GOOD_ROW}\n{{"question": \n', ["'data.jsonl', line 2 is not JSON", "one object a line"]),
    "a list": (f"{GOOD_ROW}\n[1]\n", ["'data.jsonl', line 2 holds a list"]),
    "binary": (b"\xff\xfe\x00\x81", ["can't read prompts.path 'data.jsonl'"]),
    "no question": (f'{GOOD_ROW}\n{{"answer": "2"}}\n', ["row 2", "'question'", "None"]),
    "question is a number": ('{"question": 3, "answer": "2"}\n', ["row 1", "'question' holds 3", "text"]),
    "no answer": ('{"question": "1+1=", "answer": null}\n', ["row 1", "'answer' holds no answer"]),
}


@BOTH
@pytest.mark.parametrize("case", DATA)
def test_bad_data_is_named(case, command, recipe, refused):
    content, words = DATA[case]
    Path("data.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    contains(refused(command, write(recipe), "prompts.path=data.jsonl"), *words)


@BOTH
def test_a_broken_parquet_file_is_named(command, recipe, refused):
    Path("data.parquet").write_text("no parquet")
    contains(refused(command, write(recipe), "prompts.path=data.parquet"), "can't read prompts.path 'data.parquet'")


@BOTH
def test_sampled_tokens_ask_for_one_temperature(command, recipe, refused):
    recipe["loss"] = [{"objective": {"type": "sampled_reverse_kl"}}]
    contains(refused(command, write(recipe), "loss_temperature=2"), "'sampled_reverse_kl'", "must be equal")


@BOTH
def test_broken_recorded_rollouts_are_named(command, recipe, refused):
    Path("recorded").mkdir()
    recipe["rollout"] |= {"type": "recorded", "path": "recorded"}
    for content, words in {
        "{": "does not hold rollouts",
        "{}\n": "does not hold rollouts",
        "": "holds 0 rollouts",
    }.items():
        Path("recorded/step-000001.jsonl").write_text(content)
        contains(refused(command, write(recipe)), "recorded/step-000001.jsonl", words)


@BOTH
def test_recorded_rollouts_of_another_temperature_are_named(command, recipe, refused):
    recipe["rollout"] |= {"type": "recorded", "path": "recorded", "samples_per_prompt": 1}
    recipe["prompts_per_step"] = 1
    rollout = Rollout([1, 7, 9], [False, True, True], [-0.5, -0.5], [0, 0], "stop", 0, {"answer": "2"})
    write_rollouts(Path("recorded/step-000001.jsonl"), [rollout], [{"temperature": 0.7}])
    line = refused(command, write(recipe), "rollout.temperature=0.8")
    contains(line, "recorded/step-000001.jsonl", "temperature 0.7", "rollout.temperature here is 0.8")
    write_rollouts(Path("recorded/step-000001.jsonl"), [rollout])
    contains(refused(command, write(recipe), "rollout.temperature=0.8"), "step-000002.jsonl")  # an old file passes


@BOTH
@pytest.mark.parametrize("extra", [{}, {"answer": "so 1 + 1 = 2"}])
def test_recorded_rollouts_with_other_known_answers_are_refused(command, recipe, refused, toy, extra):
    """Recorded without prompts.answer, a rollout carries the whole column, or nothing."""
    recipe["rollout"] |= {"type": "recorded", "path": "recorded", "samples_per_prompt": 1}
    recipe["prompts_per_step"] = 1
    prompts = load_prompts(parse_recipe(recipe).prompts, load_tokenizer(str(toy / "student"))).prompts
    ids = prompts[0].token_ids
    rollout = Rollout([*ids, 9], [False] * len(ids) + [True], [-0.5], [0], "stop", 0, extra)
    write_rollouts(Path("recorded/step-000001.jsonl"), [rollout])
    line = refused(command, write(recipe))
    contains(line, "recorded/step-000001.jsonl", f"known answer is {extra.get('answer')!r}", "prompts.answer")
    write_rollouts(Path("recorded/step-000001.jsonl"), [replace(rollout, extra=prompts[0].extra)])
    contains(refused(command, write(recipe)), "step-000002.jsonl")


@BOTH
def test_a_quantized_student_is_refused(command, recipe, refused, toy):
    student = copied(toy, "student")
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    contains(refused(command, write(recipe), f"student.model={student}"), "is quantized", "bf16 or fp32 original")


def copied(toy: Path, name: str) -> Path:
    """A copy of a toy model in the test's folder, without its weights: nothing here may need them."""
    return Path(shutil.copytree(toy / name, f"other-{name}", ignore=shutil.ignore_patterns("*.safetensors")))


@BOTH
def test_a_teacher_of_another_tokenizer_is_refused(command, recipe, refused, toy):
    teacher = copied(toy, "teacher")
    text = (teacher / "tokenizer.json").read_text()
    swapped = re.sub(r'"([78])": (\d+)', lambda m: f'"{15 - int(m[1])}": {m[2]}', text)
    assert swapped != text
    (teacher / "tokenizer.json").write_text(swapped)
    message = refused(command, write(recipe), f"teacher.model={teacher}")
    contains(message, "different tokenizers", "token '7'", "choose a teacher")


@BOTH
def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(command, recipe, refused, toy):
    contains(refused(command, write(recipe), f"student.model={configured(toy, vocab_size=5)}"), "student", "5", "17")


def test_a_model_that_can_not_make_activations_anew_is_not_asked_to():
    asked = StudentSettings(model="m", gradient_checkpointing=True)
    with pytest.raises(ModelError, match=r"no gradient checkpointing for 'm'; remove student\.gradient_checkpointing"):
        check_checkpointing(asked, OpenAIGPTConfig())
    check_checkpointing(StudentSettings(model="m"), OpenAIGPTConfig())
    check_checkpointing(asked, LlamaConfig())


def test_layers_that_are_dropped_are_dropout_too():
    assert dropout_rates(BioGptConfig(layerdrop=0.1))["layerdrop"] == 0.1


@BOTH
def test_a_model_with_dropout_is_refused(command, recipe, refused, toy):
    student = configured(toy, attention_dropout=0.1)
    contains(refused(command, write(recipe), f"student.model={student}"), "attention_dropout", "0.1", "set it to 0")


@BOTH
def test_a_kernel_that_leaves_out_the_cap_on_attention_is_refused(command, recipe, refused, toy):
    recipe["student"]["model"] = str(configured(toy, attn_logit_softcapping=50.0))
    message = refused(command, write(recipe), "student.attention=sdpa")
    contains(message, "attn_logit_softcapping", "sdpa", "set attention to eager")


@BOTH
def test_experts_that_vllm_would_garble_are_refused(command, recipe, refused, toy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe["student"]["model"], recipe["rollout"]["type"] = str(configured(toy, model_type="mixtral")), "vllm"
    contains(refused(command, write(recipe)), "mixture of experts", "vLLM", "rollout.type=transformers")


@BOTH
def test_an_adapter_on_a_tied_head_is_refused(command, recipe, refused, toy):
    recipe["student"] = {
        "model": str(configured(toy, tie_word_embeddings=True)),
        "lora": {"targets": ["all-linear", "lm_head"]},
    }
    message = refused(command, write(recipe))
    contains(message, "student.lora.targets names lm_head", "tied", "leave lm_head out")


@BOTH
def test_an_adapters_folder_is_no_model(command, recipe, refused, toy):
    folder = copied(toy, "student")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    recipe["student"]["model"] = str(folder)
    contains(refused(command, write(recipe)), repr(str(folder)), "an adapter", "merged/")


def configured(toy: Path, **settings: Any) -> Path:
    """A copy of the toy student with other settings in its config.json."""
    student = copied(toy, "student")
    path = student / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return student


@BOTH
def test_a_tokenizer_without_chat_template_is_refused(command, recipe, refused, toy):
    student = copied(toy, "student")
    (student / "chat_template.jinja").unlink()
    contains(refused(command, write(recipe), f"student.model={student}"), "other-student", "no chat template")


def test_a_teacher_needs_a_chat_template_only_where_it_is_scored(recipe, ended, refused, toy):
    teacher = copied(toy, "teacher")
    (teacher / "chat_template.jinja").unlink()
    scored = ["doctor", write(recipe), f"teacher.model={teacher}", "evaluate={task: arithmetic, problems: 4}"]
    contains(refused(*scored), "other-teacher", "no chat template")
    assert ended(*scored, "evaluate.teacher=false")[0] == 0


@BOTH
def test_a_template_that_refuses_the_system_message_is_named(command, recipe, refused, toy):
    student = copied(toy, "student")
    (student / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    contains(refused(command, write(recipe), f"student.model={student}"), "no system role", "prompts.system")


@BOTH
def test_a_selector_that_needs_more_than_the_teacher_gives(command, recipe, refused, monkeypatch):
    monkeypatch.setattr(LocalTeacherSettings, "gives", frozenset({"student_entropy", "distributions"}))
    message = refused(command, write(recipe))
    contains(message, "loss.0", "selector 'soft_or' needs reverse_kl", "'local' can't", "choose another selector")


@BOTH
def test_an_objective_that_needs_more_than_the_teacher_gives(command, recipe, refused, monkeypatch):
    monkeypatch.setattr(LocalTeacherSettings, "gives", frozenset({"student_entropy", "reverse_kl"}))
    message = refused(command, write(recipe))
    contains(message, "loss.0", "objective 'reverse_kl' needs distributions", "'local' can't")


@BOTH
def test_more_ranks_than_rollouts_are_refused(command, recipe, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    contains(refused(command, write(recipe)), "8 data ranks", "4 rollouts", "prompts_per_step", "samples_per_prompt")


def test_as_many_ranks_as_rollouts_pass(recipe, ended, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ended("doctor", write(recipe))[0] == 0


@BOTH
def test_more_processes_than_gpus_are_refused(command, recipe, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    contains(refused(command, write(recipe)), "2 processes", "1 GPU;", "--num_processes 1")


def test_of_two_machines_the_processes_of_both_are_asked_for(recipe, refused, monkeypatch):
    """accelerate shares --num_processes among its machines."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    contains(refused("doctor", write(recipe)), "2 processes", "1 GPU;", "--num_processes 2", "all machines together")


def test_where_nobody_is_logged_in_at_wandb_that_is_said(tmp_path: Path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    contains(login_warning(["wandb"]), "nobody is logged in", "wandb login", "WANDB_MODE=offline")
    assert login_warning(["tensorboard"]) is None
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    assert login_warning(["wandb"]) is None
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert login_warning(["wandb"]) is not None
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert login_warning(["wandb"]) is None


def test_a_micro_batch_must_hold_fixed_texts_rollouts_and_no_longer_answers(recipe, refused, ended):
    recipe |= {"evaluate": {"task": "arithmetic", "problems": 4, "max_new_tokens": 64, "fixed_text": 2}}
    assert ended("doctor", write(recipe), "token_budget=40")[0] == 0
    recipe["rollout"]["max_new_tokens"], recipe["prompts"]["max_tokens"] = 30, 6
    contains(refused("doctor", write(recipe), "token_budget=36"), "token_budget 36", "raise it to", "fixed_text=0")


@BOTH
def test_a_gpu_that_torch_can_not_use_is_said_unless_it_is_hidden(
    command, recipe, ended, refused, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho GPU 0: a card\n")
    driver.chmod(0o755)
    contains(refused(command, write(recipe)), "has a GPU that torch", "rm -r .venv", "CUDA_VISIBLE_DEVICES=")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ended("doctor", "r.yaml")[0] == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    assert ended("doctor", "r.yaml")[0] == 0


@BOTH
@pytest.mark.parametrize(("heads", "shared", "inner"), [(1, 1, 128), (8, 6, 128), (8, 4, 126)])
def test_a_model_that_can_not_be_cut_is_refused(command, heads, shared, inner, recipe, refused, toy, monkeypatch):
    """Over four ranks: heads of attention, more heads of keys than parts unevenly, and the MLP."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    sizes = {"num_attention_heads": heads, "num_key_value_heads": shared, "intermediate_size": inner}
    recipe["student"]["model"] = str(configured(toy, **sizes))
    recipe |= {"prompts_per_step": 4, "rollout": {"type": "vllm", "max_new_tokens": 16, "tensor_parallel": 4}}
    message = refused(command, write(recipe))
    contains(message, "rollout.tensor_parallel 4", f"{heads} heads", f"{shared} of keys", f"{inner} columns")


@BOTH
@pytest.mark.parametrize("override", ["rollout.sleep_level=2", "rollout.sleep=false", "rollout.gpu_memory_share=0.4"])
def test_a_gpus_setting_is_refused_where_there_is_none(command, override, recipe, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe["rollout"]["type"] = "vllm"
    contains(refused(command, write(recipe), override), override.split("=")[0], "on a GPU", "remove")


@BOTH
def test_a_cpus_cache_is_refused_where_there_is_a_gpu(command, recipe, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    recipe["rollout"]["type"] = "vllm"
    contains(refused(command, write(recipe), "rollout.kv_cache_mib=512"), "kv_cache_mib", "gpu_memory_share", "remove")


@BOTH
@pytest.mark.parametrize(
    ("lost", "setting"),
    [("ALiBi", {"alibi": True}), ("M-RoPE", {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}})],
    ids=["alibi", "mrope"],
)
def test_a_sleep_that_would_lose_a_table_is_refused(lost, setting, command, recipe, refused, toy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    recipe["student"]["model"] = str(configured(toy, **setting))
    recipe["rollout"] |= {"type": "vllm", "sleep_level": 2}
    contains(refused(command, write(recipe)), lost, "rollout.sleep_level=1")


@pytest.mark.parametrize(("lr", "said"), [(1e-6, True), (1e-3, False)])
def test_the_doctor_says_a_rate_that_is_low_for_adapters(lr: float, said: bool, recipe, ended):
    code, out, _ = ended("doctor", write(recipe), "student.lora={}", f"optimizer.lr={lr}")
    assert code == 0 and (f"warning: optimizer.lr {lr:g} is low for adapters" in out) is said


@pytest.mark.parametrize(("warmup", "said"), [(40, False), (41, True)])
def test_the_doctor_says_a_warm_up_that_outlasts_the_run(warmup: int, said: bool, recipe, ended):
    code, out, _ = ended("doctor", write(recipe), "steps=40", f"optimizer.warmup={warmup}")
    assert code == 0 and (f"warning: optimizer.warmup {warmup} is longer than the run of 40 steps" in out) is said


@BOTH
def test_adapters_of_a_full_rank_are_refused(command, recipe, refused):
    """The toy student's widest layers are 32 × 96."""
    contains(refused(command, write(recipe), "student.lora={rank: 32}"), "rank 32 is not low", "above 32", "lower it")


@BOTH
def test_a_shared_head_is_refused_where_it_can_not_be(command, recipe, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    overrides = ["teacher.head=by_vocabulary", "loss.0.objective={type: uskd}"]
    contains(refused(command, write(recipe), *overrides), "objective 'uskd'", "whole rows", "another objective")


@pytest.mark.parametrize(("ranks", "head"), [(1, "auto"), (2, "auto"), (2, "whole"), (2, "by_vocabulary")])
def test_the_doctor_says_where_the_teachers_head_lies(ranks, head, recipe, ended, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    code, out, _ = ended("doctor", write(recipe), f"teacher.head={head}")
    place = "by vocabulary over 2 ranks: as" if head == "by_vocabulary" else "whole on each rank: "
    assert code == 0 and f"the teacher's head {place}" in out
    assert "a rank holds about" in out and "\ntrains " in out


def test_of_several_ranks_the_first_speaks_and_none_measures_stopping(recipe, ended, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    contains(refused("doctor", write(recipe), "--models"), "2 were launched", "without accelerate launch")
    monkeypatch.setenv("RANK", "1")
    assert ended("doctor", write(recipe)) == (0, "", "")


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
STRETCHED = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
SHARED = {
    "heads": ({"hidden_size": 24, "num_attention_heads": 3}, 2, [], ["3 attention heads", "a divisor of 3"]),
    "key-value heads": (
        {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3},
        2,
        [],
        ["3 key-value heads", "take one that divides 3"],
    ),
    "eager": ({}, 2, ["student.attention=eager"], ["attention: eager", "sdpa or flash_attention_2"]),
    "window": ({"sliding_window": 24}, 2, [], ["window of 24 tokens", "token_budget to 24 or less"]),
    "layers": (
        {"layer_types": ["linear_attention", "full_attention"]},
        2,
        [],
        ["layers of type linear_attention", "set it to 1"],
    ),
    "positions": ({"rope_parameters": STRETCHED}, 2, [], ["rotary positions (dynamic)", "set it to 1"]),
    "a teacher in parts": (
        {},
        2,
        ["teacher.shard=zero3"],
        ["sequence_parallel_size 2 does not go together with teacher.shard: zero3", "leave out"],
    ),
    "processes": ({}, 3, [], ["sequence_parallel_size 3", "the number of processes, 4", "a divisor"]),
}
"""What keeps ranks from sharing sequences → settings of the student, size, overrides, words."""


@BOTH
@pytest.mark.parametrize("case", SHARED)
def test_sequences_that_ranks_can_not_share_are_refused(case, command, recipe, refused, toy, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    settings, size, overrides, words = SHARED[case]
    recipe["student"]["model"] = recipe["teacher"]["model"] = str(configured(toy, **HEADS | settings))
    contains(refused(command, write(recipe), f"sequence_parallel_size={size}", *overrides), *words)


@pytest.mark.parametrize("overrides", [[], ["student.lora={rank: 2}"], ["teacher.head=by_vocabulary"]], ids=str)
def test_ranks_that_share_sequences_are_one_data_rank(overrides, recipe, ended, refused, toy, monkeypatch):
    """Of four rollouts: eight processes are four data ranks; sixteen are too many."""
    recipe["student"]["model"] = recipe["teacher"]["model"] = str(configured(toy, **HEADS))
    arguments = ["doctor", write(recipe), "sequence_parallel_size=2", *overrides]
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert ended(*arguments)[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "16")
    contains(refused(*arguments), "8 data ranks", "4 rollouts")


@BOTH
def test_vllm_that_is_not_installed_is_named(command, recipe, refused, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "vllm" else find(name, *a))
    contains(refused(command, write(recipe), "rollout.type=vllm"), "vllm is not installed", "rollout.type=transformers")


@BOTH
def test_another_rank_leaves_the_word_to_rank_0_and_speaks_if_it_is_still_there(command, recipe, ended, monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = ended(command, write(recipe), "steps=many")
    assert (code, out, waited) == (2, "", [10]) and err.startswith("opd, rank 1: steps can't be 'many'")


@pytest.fixture
def run(recipe) -> RunFolder:
    """The run `old` of the recipe, with a checkpoint and one line of metrics."""
    folder = RunFolder(Path("runs/old"))
    folder.create(load_recipe(write(recipe)), data="")
    folder.append_metrics({"step": 1})
    (folder.checkpoints / "step-000001").mkdir(parents=True)
    return folder


def test_an_existing_run_is_not_overwritten(run, recipe, refused):
    message = refused("train", "r.yaml", "name=old")
    contains(message, "'runs/old' exists", "nothing is overwritten", "name=", "--resume")


def test_resume_needs_a_name(run, refused):
    contains(refused("train", "r.yaml", "--resume"), "--resume needs name=")


def test_resume_needs_a_run(run, refused):
    contains(refused("train", "r.yaml", "--resume", "name=new"), "no run 'runs/new'", "name=")


def test_without_a_checkpoint_resume_begins_anew_and_with_one_it_continues(run, ended, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "opd.train.train", lambda checked, folder, *, resume: asked.append((resume, folder.begins_anew))
    )
    ended("train", "r.yaml", "--resume", "name=old")
    (run.checkpoints / "step-000001").rename(run.checkpoints / ".step-000001.tmp")
    ended("train", "r.yaml", "--resume", "name=old")
    ended("train", "r.yaml", "name=new")
    assert asked == [(True, False), (False, True), (False, False)]


def test_resume_needs_the_same_recipe(run, refused):
    message = refused("train", "r.yaml", "loss.0.select.keep=0.3", "seed=1", "--resume", "name=old")
    contains(message, "loss.0.select.keep: 0.5 → 0.3", "seed: 0 → 1", "undo that")


def test_a_name_is_one_folder(run, refused):
    for name in ("../out", "a/b", "..", ""):
        contains(refused("train", "r.yaml", f"name='{name}'"), f"name {name!r}", "without slashes")


def test_runs_is_a_folder(run, refused):
    contains(refused("train", "r.yaml", "--runs", "r.yaml"), "'r.yaml'", "is a file")


EVAL = {
    "task": (["--tasks", "gsm9k"], ["no task 'gsm9k'", "did you mean 'gsm8k'?", "gsm8k, arithmetic"]),
    "model": (["--model", "/no/where"], ["'/no/where'"]),
    "engine": (["--engine", "sglang"], ["--engine", "'sglang'", "'vllm'", "'transformers'"]),
    "precision": (["--precision", "fp16"], ["--precision", "'fp16'", "'bf16'", "'fp32'"]),
    "problems": (["--problems", "30000"], ["30,000", "20,000", "ask for fewer"]),
    "no problems": (["--problems", "0"], ["--problems", "greater than or equal to 1"]),
    "a word": (["--problems", "many"], ["--problems", "integer"]),
}


@pytest.mark.parametrize("case", EVAL)
def test_a_bad_evaluation_is_named(case, recipe, refused, toy):
    arguments, words = EVAL[case]
    good = {"--model": str(toy / "student"), "--tasks": "arithmetic"}
    good.update([arguments])
    contains(refused("eval", *(part for pair in good.items() for part in pair)), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "Did you mean 'train'?", "`opd --help`"]),
        (["train"], ["RECIPE", "`opd train --help`"]),
        (["doctor"], ["RECIPE", "`opd doctor --help`"]),
        (["eval", "--tasks", "arithmetic"], ["--model", "`opd eval --help`"]),
        (["train", "r.yaml", "--resum"], ["--resum", "--resume"]),
        (["schema", "--jsn"], ["--jsn"]),
    ],
)
def test_a_bad_command_line_is_one_line(arguments, words, recipe, refused):
    contains(refused(*arguments), *words)


def test_an_interrupted_command_says_how_to_go_on(ended, monkeypatch):
    def pressed(*words, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.tasks.tasks_named", pressed)
    code, _, err = ended("eval", "--model", "m", "--tasks", "gsm8k")
    assert code == 130 and err.count("\n") == 1 and "interrupted" in err and "--resume" in err


def test_help_points_to_every_field(ended):
    code, out, _ = ended("train", "--help")
    assert code == 0 and "opd schema" in out
    assert ended()[1].count("train") >= 1


@pytest.mark.parametrize("case", ["unknown key", "run exists", "usage"])
def test_a_real_process_says_the_same(case, run, recipe):
    Path("runs/old/keep").write_text("me")
    before = tree(Path("runs"))
    arguments, rank, words = {
        "unknown key": (["r.yaml", "loss.0.select.kep=1"], "0", ["'loss.0.select.kep'", "did you mean 'keep'?"]),
        "run exists": (["r.yaml", "name=old"], "0", ["'runs/old' exists"]),
        "usage": (["--resum"], "0", ["--resum"]),
    }[case]
    environment = os.environ | {"RANK": rank, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "opd", "train", *arguments], capture_output=True, text=True, env=environment, timeout=60
    )
    assert_one_line(done.returncode, done.stdout, done.stderr)
    contains(done.stderr, *words)
    assert tree(Path("runs")) == before


def test_a_real_process_refuses_a_dropout_model_in_one_line(recipe, toy):
    recipe["student"]["model"] = str(configured(toy, attention_dropout=0.1))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "opd", "train", write(recipe)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert_one_line(done.returncode, done.stdout, done.stderr)
    contains(done.stderr, "attention_dropout")
    assert not Path("runs").exists()
