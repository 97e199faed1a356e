#!/bin/sh
# RUNPOD_API_KEY=... sh FILE        rents a pod of RunPod (REST API v2), which deletes itself at the end
# Credentials are taken from the environment: AWS_..., HF_TOKEN; the provider gets to know them.
# Written by the provider's documents, never tried there: look whether it has ended.
# Base model: 8,000,000,000 weights, guessed from the model's name (--parameters says it exactly).
# GPU memory: 11.9 GB estimated, a card of 24 GB or more.
# shellcheck disable=SC2016
set -eu
printf %s '{
  "name": "finetome-llama31-8b-4a7f87a74f",
  "cloud": "SECURE",
  "image": "ghcr.io/tunejob/tunejob:0.1.0",
  "entrypoint": [
    "/bin/sh",
    "-c"
  ],
  "cmd": [
    "printf %s \"$TUNEJOB_SPEC\" | base64 -d > /tmp/spec.json\ntries=0\nwhile :; do\n  /opt/tunejob/bin/tunejob run /tmp/spec.json & job=$!\n  trap \"kill -TERM $job\" TERM\n  code=0; wait $job || code=$?\n  if [ $code -gt 128 ] && kill -0 $job 2>/dev/null; then code=0; wait $job || code=$?; fi\n  case $code in 0|10|11|12|13|14|30) break;; esac\n  [ $tries -lt 2 ] || break\n  tries=$((tries + 1))\ndone\n[ $code = 30 ] || /opt/tunejob/bin/python -c '"'"'import os, urllib.request as web; web.urlopen(web.Request(\"https://api.runpod.io/v2/pods/%s\" % os.environ[\"RUNPOD_POD_ID\"], method=\"DELETE\", headers={\"Authorization\": \"Bearer \" + os.environ[\"RUNPOD_API_KEY\"]}))'"'"'\nexit $code\n"
  ],
  "disk": 124,
  "gpu": {
    "id": "NVIDIA L4",
    "count": 1,
    "minCudaVersion": "13.0",
    "minRamPerGpu": 24,
    "minVcpuCountPerGpu": 8
  },
  "env": {
    "AWS_EC2_METADATA_DISABLED": "true",
    "TUNEJOB_STOP_SECONDS": "100",
    "TUNEJOB_SPEC": "ewogICIkc2NoZW1hIjogIi4uL2pvYi5zY2hlbWEuanNvbiIsCiAgInZlcnNpb24iOiAxLAogICJuYW1lIjogImZpbmV0b21lLWxsYW1hMzEtOGIiLAogICJtb2RlbCI6IHsKICAgICJzb3VyY2UiOiAiaGY6Ly91bnNsb3RoL01ldGEtTGxhbWEtMy4xLThCLWJuYi00Yml0IiwKICAgICJwcmVjaXNpb24iOiAiNGJpdCIsCiAgICAibWVyZ2VfYmFzZSI6ICJoZjovL3Vuc2xvdGgvTWV0YS1MbGFtYS0zLjEtOEIiLAogICAgIm1heF9zZXFfbGVuZ3RoIjogMjA0OCwKICAgICJiYWNrZW5kIjogInVuc2xvdGgiCiAgfSwKICAiZGF0YSI6IHsKICAgICJ0cmFpbiI6IFsKICAgICAgewogICAgICAgICJzb3VyY2UiOiAiaGY6Ly9kYXRhc2V0cy9tbGFib25uZS9GaW5lVG9tZS0xMDBrIiwKICAgICAgICAiZm9ybWF0IjogInNoYXJlZ3B0IiwKICAgICAgICAic3BsaXQiOiAidHJhaW4iCiAgICAgIH0KICAgIF0sCiAgICAiY2hhdF90ZW1wbGF0ZSI6ICJjaGF0bWwiLAogICAgInRyYWluX29uIjogImFsbCIsCiAgICAicGFja2luZyI6IHRydWUKICB9LAogICJsb3JhIjogewogICAgInIiOiAxNiwKICAgICJhbHBoYSI6IDE2LAogICAgImRyb3BvdXQiOiAwLjAsCiAgICAidGFyZ2V0cyI6IFsKICAgICAgInFfcHJvaiIsCiAgICAgICJrX3Byb2oiLAogICAgICAidl9wcm9qIiwKICAgICAgInVwX3Byb2oiLAogICAgICAiZG93bl9wcm9qIiwKICAgICAgIm9fcHJvaiIsCiAgICAgICJnYXRlX3Byb2oiCiAgICBdLAogICAgInJzbG9yYSI6IHRydWUsCiAgICAiYmlhcyI6ICJub25lIiwKICAgICJzZWVkIjogMzQwNwogIH0sCiAgInRyYWluaW5nIjogewogICAgImVwb2NocyI6IDEsCiAgICAiYmF0Y2hfc2l6ZSI6IDgsCiAgICAiZ3JhZGllbnRfYWNjdW11bGF0aW9uX3N0ZXBzIjogMiwKICAgICJsZWFybmluZ19yYXRlIjogMC4wMDAzLAogICAgImxyX3NjaGVkdWxlciI6ICJsaW5lYXIiLAogICAgIndhcm11cF9zdGVwcyI6IDEwLAogICAgIm9wdGltaXplciI6ICJhZGFtd184Yml0IiwKICAgICJ3ZWlnaHRfZGVjYXkiOiAwLjAxLAogICAgInNlZWQiOiAwLAogICAgImxvZ2dpbmdfc3RlcHMiOiAxLAogICAgImdyYWRpZW50X2NoZWNrcG9pbnRpbmciOiAidW5zbG90aCIKICB9LAogICJldmFsdWF0aW9uIjogewogICAgInByb21wdHMiOiBbCiAgICAgICJJcyA5LjExIGxhcmdlciB0aGFuIDkuOT8iCiAgICBdLAogICAgIm1heF9uZXdfdG9rZW5zIjogMTI4CiAgfSwKICAiZXhwb3J0IjogewogICAgIm1lcmdlZCI6IFsKICAgICAgIjE2Yml0IgogICAgXSwKICAgICJnZ3VmIjogWwogICAgICAicTJfayIsCiAgICAgICJxM19rX20iLAogICAgICAicTRfa19tIiwKICAgICAgInE1X2tfbSIsCiAgICAgICJxNl9rIiwKICAgICAgInE4XzAiCiAgICBdCiAgfSwKICAib3V0cHV0IjogewogICAgInVyaSI6ICJzMzovL21vZGVscy9maW5ldG9tZS1sbGFtYTMxLThiIgogIH0KfQo="
  }
}' |
  python3 -c 'import json, os, sys; body = json.load(sys.stdin); body["env"] |= {name: os.environ[name] for name in sys.argv[1:] if os.environ.get(name)}; print(json.dumps(body))' AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN HF_TOKEN AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_REQUEST_CHECKSUM_CALCULATION AWS_RESPONSE_CHECKSUM_VALIDATION TUNEJOB_S3_ADDRESSING TUNEJOB_CHECKPOINTS HF_ENDPOINT |
  curl --fail-with-body --silent --show-error --header "Authorization: Bearer $RUNPOD_API_KEY" \
    --header 'Content-Type: application/json' --data @- https://api.runpod.io/v2/pods
