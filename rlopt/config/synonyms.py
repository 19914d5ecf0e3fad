"""What keys are called in TRL, verl, OpenRLHF and transformers, so that a name from there is answered with the key of here."""

MEANINGS: dict[str, tuple[str, ...]] = {
    "learner.lr": ("learning_rate", "lr", "actor_learning_rate", "optim.lr"),
    "learner.lr_schedule": ("lr_scheduler_type", "lr_scheduler", "scheduler", "lr_warmup_style"),
    "learner.warmup_steps": ("warmup_ratio", "num_warmup_steps", "lr_warmup_steps", "lr_warmup_ratio", "warmup"),
    "learner.weight_decay": ("wd", "l2"),
    "learner.betas": ("adam_beta1", "adam_beta2", "adam_betas"),
    "learner.max_grad_norm": ("grad_clip", "clip_grad", "gradient_clipping", "grad_norm", "max_norm"),
    "learner.gradient_checkpointing": ("enable_gradient_checkpointing", "activation_checkpointing", "recompute"),
    "learner.compile": ("torch_compile", "use_torch_compile", "torch_compile_backend", "enable_torch_compile"),
    "learner.token_budget": (
        "per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps", "ppo_micro_batch_size_per_gpu",
        "ppo_max_token_len_per_gpu", "max_tokens_per_gpu", "train_micro_batch_size_per_gpu", "micro_train_batch_size",
    ),
    "learner.workers": ("num_processes", "n_gpus", "num_gpus", "world_size", "n_gpus_per_node", "nproc_per_node", "gpus"),
    "learner.sequence_parallel": (
        "sequence_parallel_size", "ulysses_sequence_parallel_size", "sp_size", "sp", "context_parallel_size", "cp_size",
    ),
    "learner.offload": (
        "adam_offload", "optimizer_offload", "param_offload", "cpu_offload", "offload_optimizer", "offload_param",
    ),
    "learner.packing": ("padding_free", "use_remove_padding", "packing", "remove_padding", "sample_packing", "packing_samples"),
    "learner.zero_stage": ("deepspeed", "zero", "stage", "deepspeed_stage"),
    "learner.lora.rank": ("lora_r", "lora_rank", "use_peft", "peft", "lora"),
    "learner.lora.alpha": ("lora_alpha",),
    "learner.lora.targets": ("lora_target_modules", "target_modules"),
    "model.path": ("model", "model_name_or_path", "model_name", "model_id", "pretrain", "base_model", "model_path"),
    "model.dtype": ("dtype", "torch_dtype", "bf16", "fp16", "precision", "mixed_precision"),
    "data.train": ("dataset", "dataset_name", "train_dataset", "train_files", "prompt_data", "train_file", "data_path", "data"),
    "data.eval": ("eval_dataset", "val_files", "test_dataset", "validation_file", "eval_file", "val_dataset"),
    "data.subset": ("dataset_config", "dataset_config_name"),
    "data.split": ("dataset_train_split", "train_split"),
    "data.eval_split": ("dataset_test_split", "test_split"),
    "data.prompts_per_step": ("train_batch_size", "batch_size", "rollout_batch_size", "num_prompts", "prompts"),
    "data.max_prompt_tokens": ("max_prompt_length", "prompt_max_len", "prompt_length"),
    "data.prompt_key": ("input_key", "prompt_column", "dataset_text_field"),
    "data.answer_key": ("label_key", "answer_column", "ground_truth"),
    "data.system": ("system_prompt",),
    "data.template": ("prompt_template", "input_template"),
    "data.chat": ("apply_chat_template", "chat_template", "use_chat_template"),
    "rollout.max_new_tokens": (
        "max_completion_length", "max_response_length", "generate_max_len", "max_tokens", "max_length", "response_length",
    ),
    "rollout.temperature": ("sampling_temperature",),
    "rollout.tensor_parallel": ("tensor_parallel_size", "tensor_model_parallel_size", "vllm_tensor_parallel_size", "tp"),
    "rollout.engines": ("num_engines", "vllm_num_engines", "num_actors", "samplers", "rollout.workers"),
    "rollout.gpu_memory_share": ("gpu_memory_utilization", "vllm_gpu_memory_utilization"),
    "rollout.sleep": ("vllm_enable_sleep_mode", "enable_sleep_mode", "free_cache_engine"),
    "reward.fn": ("reward_funcs", "reward_function", "reward_model", "custom_reward_function", "remote_rm_url", "reward_fn"),
    "reward.weights": ("reward_weights",),
    "env.fn": ("environment_factory", "env_class", "environment", "interaction_config_path", "env_name"),
    "env.tools": ("tools", "tool_config_path"),
    "env.parser": ("tool_call_parser", "tool_parser"),
    "env.max_turns": ("max_tool_calling_iterations", "max_assistant_turns", "max_turns", "max_tool_calls"),
    "env.max_observation_chars": ("max_tool_response_length", "max_env_output_length"),
    "trainer.total_steps": (
        "max_steps", "total_training_steps", "num_train_epochs", "total_epochs", "epochs", "num_episodes", "steps",
    ),
    "trainer.save_every": ("save_steps", "save_freq", "save_interval", "save_strategy"),
    "trainer.eval_every": ("eval_steps", "test_freq", "eval_interval", "eval_strategy"),
    "trainer.keep_checkpoints": ("save_total_limit", "max_ckpt_num", "max_ckpt_to_keep"),
    "trainer.best": ("load_best_model_at_end", "metric_for_best_model"),
    "trainer.log_samples": ("log_completions", "num_completions_to_print"),
    "run.dir": ("output_dir", "save_path", "default_local_dir", "ckpt_path", "out", "logdir", "log_dir"),
    "run.name": ("run_name", "experiment_name", "wandb_run_name", "exp_name", "name"),
    "run.seed": ("random_seed",),
    "run.resume": ("resume_from_checkpoint", "resume_mode", "load_checkpoint"),
    "tracking.wandb": ("report_to", "use_wandb", "logger", "log_with"),
    "tracking.project": ("project_name", "wandb_project"),
    "tracking.group": ("wandb_group",),
    "sync.interval": ("sync_steps", "sync_interval", "ref_model_sync_steps", "weight_sync_interval", "synchronize_interval"),
    "sync.max_lag": ("staleness", "max_staleness", "staleness_threshold"),
    "algo.group_size": ("num_generations", "n_samples_per_prompt", "rollout.n", "n", "num_return_sequences"),
    "algo.minibatches": ("num_iterations", "ppo_epochs", "ppo_mini_batch_size", "num_mini_batches", "mu"),
    "algo.kl.coef": ("beta", "kl_coef", "kl_loss_coef", "init_kl_coef", "kl_ctrl", "kl_beta"),
    "algo.kl.estimator": ("kl_loss_type", "kl_estimator", "kl_penalty"),
    "algo.entropy_coef": ("entropy_coeff", "ent_coef", "entropy_beta"),
    "algo.clip_low": ("epsilon", "clip_eps", "cliprange", "clip_ratio", "clip_ratio_low", "clip", "eps_clip", "clip_range"),
    "algo.clip_high": ("epsilon_high", "clip_ratio_high", "eps_clip_high"),
    "algo.overlong.filter": ("mask_truncated_completions", "overlong_filter"),
    "cluster.address": ("ray_address", "address"),
    "cluster.gpus_per_learner": ("gpus_per_actor",),
    "cluster.cpu_threads": ("num_threads", "omp_num_threads"),
    "eval.samples": ("val_kwargs.n", "n_eval", "eval_n"),
}  # fmt: skip
"""Key to other names of it: of frameworks, or short."""


def meant(name: str) -> str | None:
    """The key of rlopt that another framework calls `name`, or calls what follows its last dots."""
    parts = name.lower().replace("-", "_").split(".")
    for start in range(len(parts)):
        tail = ".".join(parts[start:])
        for key, others in MEANINGS.items():
            if tail in others:
                return key
    return None
