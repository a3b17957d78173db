"""On-policy distillation of language models: the student samples, a teacher scores, the tokens that matter train.

In reading order:

    cli.py            the `opd` command: train, eval, compare, push, doctor, schema
    config.py         Recipe: a whole recipe as typed, validated data
    recipe_text.py    a recipe from YAML and overrides, one-line complaints, the lines of `opd schema`
    synonyms.py       other trainers' words for its keys, to answer an unknown one
    figures.py        figures that a recipe carries: the paper's, others', and ours
    train.py          builds the parts, runs the loop, evaluates, saves: read this first
    parts.py          the parts of a run, each built from a checked recipe
    evaluation.py     scores of both models on held-out problems, and their divergence on fixed text
    step.py           one optimizer step: read this second
    plan.py           what every token of a step pays, decided on the token table before any gradient
    batch.py          Prompt → Rollout → Batch → TokenTable, and the dimension dictionary
    prompts.py        prompts from a hub data set or a local file, chat templates
    stop.py           which ids end a turn, and which of them count as one
    rollout/          yields a step's rollouts; the engines vllm and transformers
    rewards.py        the one grader: rewards in training and scores in eval/
    grading/          the grader's parts: which answer is final, and whether two are the same
    advantages.py     how much a rollout stands out among those of its prompt
    selection/        which tokens train, and which rollouts: one rule, one small file
    packing.py        rollouts → micro-batches of a token budget, and their pieces; arithmetic on lengths
    teacher/          a frozen model beside the student, and what must hold before step 1
    student.py        one module whose forward runs backbone and head; weights and export
    reading.py        how a model is read: backbone, states at trained positions, its head as mathematics
    models.py         loading models, configurations and tokenizers
    model_spec.py     how a recipe names a model
    attention.py      which kernel computes attention, and which choices are refused
    lora.py           low-rank adapters: which layers, and a layer with its adapter as one weight
    head/             the selective lm_head, strip by strip of the vocabulary: statistics, loss, cost
    objectives/       what a retained token pays: one objective, one small file
    schedules.py      values that change with progress, resolved before a step
    distributed.py    ranks and DeepSpeed: start, gather, backward, update
    vocab_ranks.py    ranks that share heads by vocabulary: collectives, and the exchange of rows
    ulysses.py        ranks that share sequences: attention over pieces that others hold
    checkpoint.py     atomic checkpoints
    run.py            the run folder and what it refuses to overwrite
    hub.py            a finished run's model on the Hugging Face hub, never over another
    metrics.py        what a step says about itself, and the clock
    report/           progress line, final table, plot, model card, stored rollouts, experiment trackers
    doctor.py         everything that can be found wrong before a model loads
    arithmetic.py     what this machine multiplies slowly
    memory.py         what trains, and what a rank must hold for it, calculated
    record.py         the base of everything that a recipe can hold
    seeds.py          every random draw has a name
    errors.py         errors that a user can mend: one line, no traceback
"""
