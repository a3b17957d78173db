"""Other trainers' words (TRL, verl, ms-swift, tinker-cookbook, peft) for keys of ours, to answer an unknown key."""

ELSEWHERE = {
    "optimizer.lr": ("lr", "learning_rate"),
    "optimizer.warmup": ("warmup_steps", "num_warmup_steps"),
    "optimizer.schedule": ("lr_scheduler_type",),
    "optimizer.max_grad_norm": ("max_grad_norm", "grad_clip"),
    "optimizer.weight_decay": ("weight_decay",),
    "prompts_per_step": ("train_batch_size", "batch_size", "groups_per_batch"),
    "rollout.samples_per_prompt": ("num_generations", "n", "group_size", "num_samples"),
    "rollout.temperature": ("temperature",),
    "rollout.max_new_tokens": (
        "max_new_tokens",
        "max_completion_length",
        "response_length",
        "max_response_length",
        "max_tokens",
    ),
    "prompts.max_tokens": ("max_prompt_length", "prompt_length"),
    "loss.0.objective={type: jsd, beta: …}": ("beta",),
    "steps": ("max_steps", "total_training_steps"),
    "student.model": ("model", "model_name", "model_name_or_path"),
    "teacher.model": ("teacher_model", "teacher_model_name_or_path"),
    "student.lora.rank": ("r", "lora_r", "lora_rank"),
    "student.lora.alpha": ("lora_alpha",),
    "student.lora.targets": ("target_modules", "lora_target_modules"),
    "student.lora": ("use_peft", "use_lora", "peft_config"),
    "student.attention": ("attn_implementation",),
    "student.gradient_checkpointing": ("gradient_checkpointing",),
    "precision": ("bf16", "fp16", "dtype", "torch_dtype"),
    "prompts.dataset": ("dataset_name", "train_files", "data"),
    "metrics.trackers": ("report_to", "logger"),
    "checkpoints.every": ("save_steps", "save_freq", "save_every"),
    "evaluate.every": ("eval_steps", "test_freq", "eval_every"),
    "name": ("output_dir", "run_name", "log_path", "experiment_name"),
    "rollout.tensor_parallel": ("tensor_model_parallel_size", "tensor_parallel_size", "vllm_tensor_parallel_size"),
    "rollout.gpu_memory_share": ("gpu_memory_utilization", "vllm_gpu_memory_utilization"),
    "sequence_parallel_size": ("ulysses_sequence_parallel_size", "sp_size"),
    "hub.repo": ("push_to_hub", "hub_model_id"),
}
"""Our key for what other trainers (TRL, verl, ms-swift, tinker-cookbook, peft) call so."""
NOT_HERE = {
    "a run has steps, of prompts_per_step prompts each": ("num_train_epochs", "total_epochs", "num_epochs"),
    "instead, write 'optimizer.warmup', in steps": ("warmup_ratio",),
    "prompts_per_step is a step's size over all ranks, and token_budget cuts it into micro-batches": (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "ppo_mini_batch_size",
        "ppo_micro_batch_size_per_gpu",
    ),
    "adapters drop nothing out: scores and gradients would be those of two models": ("lora_dropout", "dropout"),
    "rollouts are samples of the student's whole distribution: no top-p, top-k or min-p": ("top_p", "top_k", "min_p"),
}
"""What to say of what this one has in another way, or leaves out."""


def way_from(word: str, known: list[str]) -> str | None:
    """What to write instead of another trainer's word in a section with these keys; None if nobody's word is known.

    >>> way_from("learning_rate", ["student", "optimizer"])
    "instead, write 'optimizer.lr'"
    >>> way_from("model_name_or_path", ["model", "revision"])
    "instead, write 'model'"
    """
    if ours := _of(word, ELSEWHERE):
        last = ours.rsplit(".", 1)[-1]
        return f"instead, write {(last if last in known else ours)!r}"
    return _of(word, NOT_HERE)


def _of(word: str, table: dict[str, tuple[str, ...]]) -> str | None:
    return next((answer for answer, words in table.items() if word in words), None)
