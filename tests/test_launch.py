"""What stands in launch/ starts what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from opd.distributed import free_port
from tests.launching import EVERY_CASE, ROOT, accelerate, environment
from tests.test_hub import serving

CONFIGURATIONS = sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))
SLURM = sorted((ROOT / "launch" / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_configuration_begins_with_its_command_and_names_what_is_there(path: Path):
    first = path.read_text().splitlines()[0]
    assert first == f"# accelerate launch --config_file launch/accelerate/{path.name} -m opd train RECIPE"
    settings = yaml.safe_load(path.read_text())
    deepspeed = json.loads((ROOT / settings["deepspeed_config"]["deepspeed_config_file"]).read_text())
    stage = deepspeed["zero_optimization"]["stage"]
    assert f"ZeRO stage {stage}" in path.read_text()
    machines = 2 if path.stem == "multi-node" else 1
    processes = 16 if machines == 2 else int(path.stem.split("-")[1])
    assert (settings["num_machines"], settings["num_processes"]) == (machines, processes)
    assert stage != 3 or deepspeed["zero_optimization"]["stage3_param_persistence_threshold"] == 0


@pytest.mark.parametrize("path", [*CONFIGURATIONS, *SLURM], ids=lambda path: path.name)
def test_what_a_file_says_of_itself_stands_in_the_readme(path: Path):
    """Run here, on one machine with stand-ins for two, or not yet: nobody takes one for another."""
    said = path.read_text()
    ran = "not yet run" not in said.lower()
    assert ran == ("cpu" in path.stem or (path.stem == "multi-node" and path.suffix == ".yaml"))
    whole = (ROOT / "README.md").read_text()
    rows = [row for row in whole[whole.index("## What has run where") :].splitlines() if row.startswith("|")]
    name = "launch/slurm/" if path in SLURM else path.name
    verdicts = {row.split("|")[-2].strip() for row in rows if name in row.split("|")[1]}
    assert verdicts and all(verdict.startswith("run" if ran else "not yet run") for verdict in verdicts)


@pytest.mark.parametrize("path", [*sorted((ROOT / "launch").glob("*.sh")), *SLURM], ids=lambda path: path.name)
def test_a_script_is_bash(path: Path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def stand_in(folder: Path, name: str, script: str) -> None:
    """A command of that name on the test's own PATH."""
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("driver", "asked", "there", "code", "word"),
    [
        ("exit 0", "", "", 0, ""),
        ("echo GPU 0", "", "cpu", 2, "holds the cpu build and cuda is wanted; rm -r .venv, or set OPD_BUILD=cpu"),
        ("echo GPU 0", "", "cpu unfinished", 2, "holds the cpu build and cuda is wanted"),
        ("echo GPU 0", "cpu", "cpu", 0, ""),
        ("echo No devices found.", "", "cpu", 0, ""),
        ("echo it failed; exit 9", "", "cpu", 0, ""),
        ("exit 9", "", "cuda", 0, ""),
        ("exit 9", "cpu", "cuda", 2, "holds the cuda build and cpu is wanted"),
        ("exit 9", "rocm", "", 2, "OPD_BUILD can't be 'rocm'"),
    ],
)
def test_an_environment_of_the_other_build_is_not_taken_for_ready(driver, asked, there, code, word, tmp_path: Path):
    """A login node may hold a build for GPUs; a GPU beside a build for CPUs would lie idle."""
    for name in ("launch/setup.sh", "launch/constraints.txt", "setup.cfg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    stand_in(tmp_path, "nvidia-smi", driver)
    files = subprocess.run(
        "cat setup.cfg launch/constraints.txt launch/setup.sh | cksum",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    (tmp_path / ".venv").mkdir()
    stamp = there if " " in there else f"{there or 'cpu'} {files.stdout}"
    (tmp_path / ".venv" / ".opd-ready").write_text(stamp)
    done = subprocess.run(
        ["bash", "launch/setup.sh"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OPD_BUILD": asked},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (code, "") and word in done.stderr


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
@pytest.mark.parametrize("killed_before", [False, True])
@pytest.mark.parametrize("named", [[], ["name=mine"]], ids=["unnamed", "named"])
def test_a_batch_job_launches_its_file_on_each_machine_and_resumes(
    path: Path, killed_before: bool, named: list[str], tmp_path: Path
):
    """With stand-ins for Slurm's commands and for accelerate, which says what it was called with."""
    nodes, run = 2 if "multi" in path.stem else 1, "mine" if named else "opd-7"
    assert path.read_text().splitlines()[1] == f"# sbatch launch/slurm/{path.name} RECIPE [KEY.PATH=VALUE]..."
    assert f"#SBATCH --nodes={nodes}\n" in path.read_text()
    stand_in(tmp_path, "accelerate", 'echo "$@"')
    stand_in(tmp_path, "scontrol", "printf 'node-a\\nnode-b\\n'")
    options = 'while [[ $1 == --* ]]; do echo "srun $1" >&2; shift; done'
    stand_in(tmp_path, "srun", options + '; for i in 0 1; do SLURM_PROCID=$i "$@"; done')
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    if killed_before:
        (tmp_path / "runs" / run).mkdir(parents=True)
    slurm = {"SLURM_JOB_NAME": "opd", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    slurm |= {"SLURM_CPUS_PER_TASK": "64"}
    slurm |= {"SLURM_RESTART_COUNT": "1", "CONFIG": "launch/accelerate/gpu-8-zero3.yaml"} if killed_before else {}
    done = subprocess.run(
        ["bash", str(path), "r.yaml", *named, "steps=3", "loss.0.select={type: random, keep: 0.5}"],
        cwd=tmp_path,
        env=environment() | slurm | {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-[a-b]"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == nodes
    assert nodes == 1 or done.stderr == "srun --kill-on-bad-exit=1\nsrun --cpus-per-task=64\n"
    resume = " --resume" if killed_before else ""
    for rank, line in enumerate(lines):
        words = ["r.yaml", *named, "steps=3", "loss.0.select={type: random, keep: 0.5}", f"name={run}"]
        assert line.endswith(f"-m opd train {' '.join(words)}{resume}")
        configuration = line.split()[line.split().index("--config_file") + 1]
        own = "multi-node" if nodes == 2 else "gpu-8-zero2"
        assert configuration == f"launch/accelerate/{'gpu-8-zero3' if killed_before else own}.yaml"
        if nodes == 2:
            assert "--deepspeed_multinode_launcher standard" in line, "or each node runs alone"
            assert f"--machine_rank {rank} --main_process_ip node-a --main_process_port 20007" in line
        assert f"--num_processes {8 * nodes}" in line


def arguments(toy: Path, runs: Path, overrides: list[str]) -> list[str]:
    """A short run of the quickstart's recipe with tiny models."""
    given = [
        f"student.model={toy / 'student'}",
        f"teacher.model={toy / 'teacher'}",
        f"prompts.path={toy / 'train.jsonl'}",
        *([] if any("transformers" in o for o in overrides) else ["rollout.kv_cache_mib=64"]),
        "prompts_per_step=6",
        "steps=3",
        "evaluate={task: arithmetic, problems: 12, fixed_text: 4}",
    ]
    return ["train", "recipes/quickstart/quickstart.yaml", *given, *overrides, "--runs", str(runs), "name=run"]


def command(toy: Path, runs: Path, configuration: str, launcher: list[str], overrides: list[str]) -> list[str]:
    """The same, under a file of launch/accelerate."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", f"launch/accelerate/{configuration}.yaml"]
    return [sys.executable, *launch, *launcher, "-m", "opd", *arguments(toy, runs, overrides)]


def launched(
    toy: Path, runs: Path, configuration: str, *overrides: str, launcher: list[str] | None = None
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(toy, runs, configuration, ["--main_process_port", "0", *(launcher or [])], list(overrides)),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.engine
def test_launchers_of_two_machines_make_one_run(toy: Path, tmp_path: Path):
    """Both on this machine, with one process each; bf16, and ranks share the teacher, and one prompt's rollouts."""
    overrides = ["steps=2", "evaluate=null", "precision=bf16", "teacher.shard=zero3", "prompts_per_step=1"]
    overrides.append("rollout={type: transformers, max_new_tokens: 12, samples_per_prompt: 2}")
    meeting = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    launchers = [
        subprocess.Popen(
            command(toy, tmp_path, "multi-node", ["--machine_rank", str(machine), *meeting], overrides),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine in range(2)
    ]
    try:
        said = [launcher.communicate(timeout=400) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["ranks"], summary["zero_stage"]) == (2, 3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["skipped"] == 0 and line["gap"] < 0.05 for line in lines)
    assert "nothing was scored" in said[0][0] and "nothing was scored" not in said[1][0], "rank 0 alone speaks"


@pytest.mark.engine
def test_ranks_that_share_the_teachers_head_train_as_those_that_hold_it_whole(toy: Path, tmp_path: Path):
    lines = {}
    for head in ("whole", "by_vocabulary"):
        given = ["precision=bf16", "rollout.type=transformers", f"teacher.head={head}", "steps=2", "evaluate=null"]
        words = arguments(toy, tmp_path / head, given)
        accelerate(tmp_path, "opd", *words, ranks=2, stage=ROOT / "launch" / "deepspeed" / "zero3.json")
        metrics = (tmp_path / head / "run" / "metrics.jsonl").read_text()
        lines[head] = [json.loads(line) for line in metrics.splitlines()]
    first, shared = lines["whole"][0], lines["by_vocabulary"][0]
    for name in ("loss", "grad_norm", "reverse_kl", "teacher_stop_mass", "teacher_entropy"):
        assert shared[name] == pytest.approx(first[name], rel=0.01), name
    assert all(line["skipped"] == 0 and line["gap"] < 0.05 for line in lines["by_vocabulary"])


def tracked(run: Path, name: str) -> dict[int, float]:
    """What TensorBoard's files below a run hold of a number, by step."""
    found = {}
    for folder in {path.parent for path in run.rglob("events.out.tfevents*")}:
        events = EventAccumulator(str(folder)).Reload()
        found |= {e.step: e.value for e in events.Scalars(name)} if name in events.Tags()["scalars"] else {}
    return found


@pytest.mark.engine
@pytest.mark.parametrize(("configuration", "precision"), [("cpu-1", "bf16"), ("cpu-2-zero3", "fp32")])
def test_the_main_job_runs_to_its_end(configuration: str, precision: str, toy: Path, tmp_path: Path):
    done = launched(toy, tmp_path, configuration, f"precision={precision}", "metrics.trackers=[tensorboard]")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "student, end" in done.stdout
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["ranks"] == (1 if configuration == "cpu-1" else 2)
    assert set(summary["scores"]["arithmetic"]) == {"teacher", "student_start", "student_end"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["gap"] < 0.05 for line in lines), "the engine does not follow the trainer"
    assert all(line["skipped"] == 0 and line["grad_norm"] > 0 for line in lines)
    assert sorted(tracked(run, "loss")) == [1, 2, 3] and set(tracked(run, "evaluate/arithmetic")) == {0, 3}
    exported, start = load_file(run / "model" / "model.safetensors"), load_file(toy / "student" / "model.safetensors")
    assert exported.keys() == start.keys()
    AutoModelForCausalLM.from_pretrained(run / "model")
    for name in (
        "plot.png",
        "recipe.yaml",
        "fixed_text.jsonl",
        "rollouts/step-000003.jsonl",
        "checkpoints/step-000003",
    ):
        assert (run / name).exists(), name


@pytest.mark.engine
@pytest.mark.parametrize(
    "configuration",
    [
        "cpu-2-zero2",
        *(pytest.param(f"gpu-8-{stage}", marks=EVERY_CASE) for stage in ("zero2", "zero3", "zero3-offload")),
    ],
)
def test_two_ranks_take_what_a_file_gives_to_eight_and_put_their_model_on_the_hub(
    configuration: str, toy: Path, tmp_path: Path, monkeypatch
):
    overrides = ("precision=bf16", "rollout.type=transformers", "evaluate=null", "steps=2", "hub={repo: ann/tiny}")
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "good")
        done = launched(toy, tmp_path, configuration, *overrides, launcher=["--num_processes", "2"])
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["ranks"], f"zero{summary['zero_stage']}") == (2, configuration.split("-")[2])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["skipped"] == 0 and line["gap"] < 0.05 for line in lines)
    assert "nothing was scored" in done.stdout and "reverse KL on fresh rollouts" in done.stdout
    assert f"hub   {hub.address}/ann/tiny" in done.stdout.splitlines()
    there, model = hub.repos["ann/tiny"], tmp_path / "run" / "model"
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= there.keys()
    assert all(there[path.name] == path.read_bytes() for path in model.iterdir())
    assert b"opd train" in there["README.md"] and b"repo: ann/tiny" in there["README.md"]


@pytest.mark.engine
def test_under_a_launcher_the_one_line_comes_first(toy: Path, tmp_path: Path):
    done = launched(toy, tmp_path, "cpu-2-zero3", "loss.0.select.keep=0")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("opd: ")]
    assert len(lines) == 1 and "loss.0.select.keep" in lines[0]
    assert not (tmp_path / "run").exists()
