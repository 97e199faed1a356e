#!/bin/sh
# sh FILE        more options of docker run may follow; exit status 0, or the code of the failure (README, Exit codes)
# Credentials are taken from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY for S3, and where they are set
# AWS_SESSION_TOKEN, HF_TOKEN; so are AWS_REGION, AWS_ENDPOINT_URL and HF_ENDPOINT.
# Image: tunejob:0.1.0, made on this machine by `docker build -t tunejob:0.1.0 .` in a clone of tunejob.
# It is not pulled: no release is out yet.
# Base model: 8,000,000,000 weights, guessed from the model's name (--parameters says it exactly).
# GPU memory, least: 10.2 GB, as sparingly as the spec lets with rows of max_seq_length 2048; a card of 24 GB or more.
# A run takes what is free to be quicker: `tunejob plan` has what is expected.
# shellcheck disable=SC2016
set -eu
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN HF_TOKEN AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_REQUEST_CHECKSUM_CALCULATION AWS_RESPONSE_CHECKSUM_VALIDATION TUNEJOB_S3_ADDRESSING TUNEJOB_CHECKPOINTS HF_ENDPOINT; do
  [ -z "$(printenv "$name")" ] || set -- --env "$name" "$@"
done
[ -z "${AWS_CA_BUNDLE:-}" ] || set -- --volume "$AWS_CA_BUNDLE:/etc/tunejob/ca.pem:ro" --env AWS_CA_BUNDLE=/etc/tunejob/ca.pem "$@"
printf %s '{
  "$schema": "../job.schema.json",
  "version": 1,
  "name": "finetome-llama31-8b",
  "model": {
    "source": "hf://unsloth/Meta-Llama-3.1-8B-bnb-4bit",
    "precision": "4bit",
    "merge_base": "hf://unsloth/Meta-Llama-3.1-8B",
    "max_seq_length": 2048,
    "backend": "unsloth"
  },
  "data": {
    "train": [
      {
        "source": "hf://datasets/mlabonne/FineTome-100k",
        "format": "sharegpt",
        "split": "train"
      }
    ],
    "held_out": false,
    "chat_template": "chatml",
    "train_on": "all",
    "packing": true
  },
  "lora": {
    "r": 16,
    "alpha": 16,
    "dropout": 0.0,
    "targets": [
      "q_proj",
      "k_proj",
      "v_proj",
      "up_proj",
      "down_proj",
      "o_proj",
      "gate_proj"
    ],
    "rslora": true,
    "bias": "none",
    "seed": 3407
  },
  "training": {
    "epochs": 1,
    "batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.0003,
    "lr_scheduler": "linear",
    "warmup_steps": 10,
    "optimizer": "adamw_8bit",
    "weight_decay": 0.01,
    "seed": 0,
    "logging_steps": 1
  },
  "evaluation": {
    "prompts": [
      "Is 9.11 larger than 9.9?"
    ],
    "max_new_tokens": 128
  },
  "export": {
    "merged": [
      "16bit"
    ],
    "gguf": [
      "q2_k",
      "q3_k_m",
      "q4_k_m",
      "q5_k_m",
      "q6_k",
      "q8_0"
    ]
  },
  "output": {
    "uri": "s3://models/finetome-llama31-8b"
  }
}
' |
  docker run --rm --interactive --name finetome-llama31-8b-7d234035d2 \
    --gpus "${TUNEJOB_GPUS:-all}" \
    --read-only --cap-drop ALL --security-opt no-new-privileges --volume /scratch --volume /tmp \
    --memory 24g --shm-size 2g \
    --stop-timeout 120 --env TUNEJOB_STOP_SECONDS=100 --env AWS_EC2_METADATA_DISABLED=true \
    --pull never \
    "$@" tunejob:0.1.0 run -
