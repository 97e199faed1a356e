"""Names of settings in other tools, and where the same is in a spec: for those who bring a config along."""

from __future__ import annotations

# By the key that has them here: the names of TRL, transformers, PEFT, Axolotl, LLaMA-Factory and Unsloth's notebooks.
NAMES_OF = {
    "/name": "run_name suffix wandb_name wandb_run_name",
    "/model/adapter": "adapter_name_or_path lora_model_dir",
    "/model/backend": "tuner_backend use_unsloth",
    "/model/max_seq_length": (
        "block_len block_size cutoff_len max_input_length max_length max_seq_len model_max_length seq_len "
        "seq_length sequence_len"
    ),
    "/model/precision": (
        "bf16 bits bnb_4bit_compute_dtype bnb_4bit_quant_type dtype finetuning_type fp16 full_finetuning "
        "load_in_16bit load_in_4bit load_in_8bit peft_type qlora quantization_bit quantization_config sft_type "
        "torch_dtype train_type tuner_type"
    ),
    "/model/source": "base_model model_id model_name model_name_or_path",
    "/data/chat_template": "chat_template chat_template_jinja chat_template_path template",
    "/data/held_out": (
        "eval_data eval_dataset eval_file eval_split test_file val_data val_dataset val_file val_set_size val_size "
        "valid_file validation_data validation_file"
    ),
    "/data/held_out/fraction": "split_dataset_ratio test_size validation_split",
    "/data/packing": "neat_packing packing_strategy padding_free sample_packing",
    "/data/shuffle": "dataset_shuffle",
    "/data/train": (
        "data_files data_path dataset dataset_name dataset_path datasets train_data train_dataset train_file "
        "train_path training_data training_file"
    ),
    "/data/train/0/columns": "field_instruction field_messages field_output message_property_mappings",
    "/data/train/0/columns/text": "dataset_text_field text_column",
    "/data/train/0/limit": "max_samples max_train_samples",
    "/data/train/0/source": "dataset_dir",
    "/data/train/0/template": "prompt_template",
    "/data/train/0/template/system": "system_prompt",
    "/data/train_on": (
        "assistant_only_loss completion_only_loss instruction_part mask_history response_part response_template "
        "roles_to_train train_on_input train_on_inputs train_on_prompt train_on_responses_only"
    ),
    "/lora": "peft_config use_peft",
    "/lora/alpha": "lora_alpha",
    "/lora/bias": "lora_bias",
    "/lora/dora": "use_dora",
    "/lora/dropout": "lora_dropout",
    "/lora/init": "init_lora_weights loftq_config pissa_init",
    "/lora/modules_to_save": "additional_target lora_modules_to_save",
    "/lora/r": "adapter_rank lora_r lora_rank rank",
    "/lora/rslora": "use_rslora",
    "/lora/targets": "lora_target lora_target_linear lora_target_modules target_modules target_regex",
    "/training/adam_beta1": "beta1",
    "/training/adam_beta2": "beta2",
    "/training/batch_size": "batch micro_batch_size per_device_train_batch_size",
    "/training/dpo/beta": "dpo_beta pref_beta rl_beta",
    "/training/dpo/label_smoothing": "dpo_label_smoothing",
    "/training/dpo/loss_type": "pref_loss",
    "/training/dpo/sft_weight": "pref_ftx rpo_alpha",
    "/training/early_stopping/patience": "early_stopping_patience",
    "/training/epochs": "n_epochs num_epochs num_train_epochs",
    "/training/eval_batch_size": "eval_batch_size per_device_eval_batch_size",
    "/training/eval_steps": "eval_every eval_strategy evals_per_epoch evaluation_strategy",
    "/training/gradient_accumulation_steps": "gradient_accumulation",
    "/training/gradient_checkpointing": "gradient_checkpointing_kwargs use_gradient_checkpointing",
    "/training/grpo/group_size": "num_generations",
    "/training/grpo/max_new_tokens": "max_completion_length",
    "/training/grpo/rewards": "reward_funcs",
    "/training/grpo/vllm_gpu_memory_utilization": "gpu_memory_utilization",
    "/training/keep": "load_best_model_at_end metric_for_best_model",
    "/training/learning_rate": "learning_rate_multiplier lr",
    "/training/logging_steps": "logging_strategy",
    "/training/lr_scheduler": "learning_rate_scheduler lr_scheduler_type scheduler",
    "/training/max_grad_norm": "clip_grad_norm gradient_clipping",
    "/training/max_steps": "max_train_steps num_steps steps",
    "/training/method": "method rl rlhf_type stage",
    "/training/optimizer": "optim",
    "/training/seed": "data_seed random_state",
    "/training/simpo/gamma": "simpo_gamma",
    "/training/simpo/sft_weight": "cpo_alpha",
    "/training/warmup_steps": "warmup",
    "/evaluation/metrics": "eval_metrics",
    "/tracking": "logging_dir report_to",
    "/export/gguf": "export_quantization_bit quant quantization quantization_method",
    "/export/merged": "merge_lora save_method",
    "/output/checkpoints": "save_strategy",
    "/output/checkpoints/every_steps": "save_steps saves_per_epoch",
    "/output/checkpoints/keep": "save_total_limit",
    "/output/hub": "push_to_hub",
    "/output/hub/private": "hub_private_repo",
    "/output/hub/repository": "hub_model_id",
    "/output/uri": "export_dir output_dir",
    "/resources/gpus": "devices n_gpus nproc_per_node num_gpus num_processes",
    "/resources/nodes": "nnodes num_machines num_nodes",
    "/resources/weights": "deepspeed fsdp fsdp_config",
}
NAMES = {name: pointer for pointer, names in NAMES_OF.items() for name in names.split()}

# Words that say something else in each section.
IN_SECTION = {
    "model": dict.fromkeys(("base", "id", "model", "name", "path", "repo"), "/model/source"),
    "data": {
        **dict.fromkeys(("file", "files", "name", "path", "repo"), "/data/train/0/source"),
        "type": "/data/train/0/format",
    },
    "output": dict.fromkeys(("dir", "directory", "folder", "path"), "/output/uri"),
}

# Settings of other tools that decide nothing here, and what nothing here does.
UNNEEDED = """
activation_offloading dataloader_num_workers dataset_num_proc dataset_prepared_path device_map do_eval
do_predict do_train ds_type infer_backend lazy_tokenize local_rank lora_fan_in_fan_out model_type
overwrite_cache pad_to_sequence_len plot_loss preprocessing_num_workers save_only_model save_safetensors
strict tf32 tokenizer_type torch_compile use_hf
"""
UNKNOWN = """
embedding_learning_rate enable_liger_kernel galore group_by_length liger_kernel lora_plus loraplus_lr_ratio
neftune_noise_alpha relora rope_scaling use_liger_kernel
"""
VLLM = """
fast_inference generation rollout_backend vllm vllm_enable_sleep_mode vllm_max_model_length vllm_mode
vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
vllm_structured_outputs_regex vllm_tensor_parallel_size
"""

# What is not a key of a spec, and what to do instead.
INSTEAD = {
    **dict.fromkeys(
        ("auto_resume_from_checkpoints", "resume", "resume_from_checkpoint"),
        "There is nothing to set: the same spec, run again, goes on at its last checkpoint",
    ),
    **dict.fromkeys(("overwrite_output", "overwrite_output_dir"), "tunejob run --replace does that"),
    **dict.fromkeys(
        ("attn_impl", "attn_implementation", "flash_attention", "flash_attn", "flash_attn_2", "xformers_attention"),
        "There is nothing to set: the attention is PyTorch's, or the engine's own",
    ),
    **dict.fromkeys(
        ("bos_token", "eos_token", "pad_token", "special_tokens", "tokenizer", "tokenizer_name_or_path", "unk_token"),
        "There is nothing to set: the tokenizer and its tokens are the model's own",
    ),
    **dict.fromkeys(
        ("wandb_entity", "wandb_log_model", "wandb_mode", "wandb_project"),
        'Write "tracking": ["wandb"]; the project comes from the environment: WANDB_PROJECT, WANDB_ENTITY',
    ),
    **dict.fromkeys(
        VLLM.split(),
        "Remove it: what is set of vLLM is use_vllm and vllm_gpu_memory_utilization (schemas/README.md, grpo)",
    ),
    **dict.fromkeys(UNNEEDED.split(), "There is nothing to set; remove it"),
    **dict.fromkeys(UNKNOWN.split(), "tunejob does not have this; remove it"),
    "adapter": (
        "Here it is /model/precision where lora or qlora is meant (16bit, 4bit), "
        "and /model/adapter for an adapter to go on from"
    ),
    "beta": "Here it is in the section of the method: /training/dpo/beta, and so on",
    "cache_dir": "What is fetched lies below --workdir, or TUNEJOB_WORKDIR",
    "hyperparameters": "Here it is /training",
    "streaming": "Rows are not streamed, but fetched to disk; /data/train/0/limit takes the first ones",
    "trust_remote_code": "No code of a model is run, and nothing switches that on",
    "truncation_strategy": "Rows are cut at /model/max_seq_length",
}
