#!/bin/sh
# sh FILE [OFFER]        rents the cheapest offer of Vast that fits; the instance destroys itself at the end
# Credentials are taken from the environment: AWS_..., HF_TOKEN; the provider gets to know them.
# Written by the provider's documents, never tried there: look whether it has ended.
# Base model: 8,000,000,000 weights, guessed from the model's name (--parameters says it exactly).
# GPU memory: 11.9 GB estimated, a card of 24 GB or more.
# shellcheck disable=SC2016
set -eu
offer=${1:-$(vastai search offers 'num_gpus=1 gpu_ram>=22 cpu_ram>=26 disk_space>=133 cpu_cores_effective>=8 cuda_vers>=13.0 reliability>0.98 rentable=true' --order dph --raw | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["id"])')}
environment='-e AWS_EC2_METADATA_DISABLED=true -e TUNEJOB_STOP_SECONDS=100 -e TUNEJOB_SPEC=ewogICIkc2NoZW1hIjogIi4uL2pvYi5zY2hlbWEuanNvbiIsCiAgInZlcnNpb24iOiAxLAogICJuYW1lIjogImZpbmV0b21lLWxsYW1hMzEtOGIiLAogICJtb2RlbCI6IHsKICAgICJzb3VyY2UiOiAiaGY6Ly91bnNsb3RoL01ldGEtTGxhbWEtMy4xLThCLWJuYi00Yml0IiwKICAgICJwcmVjaXNpb24iOiAiNGJpdCIsCiAgICAibWVyZ2VfYmFzZSI6ICJoZjovL3Vuc2xvdGgvTWV0YS1MbGFtYS0zLjEtOEIiLAogICAgIm1heF9zZXFfbGVuZ3RoIjogMjA0OCwKICAgICJiYWNrZW5kIjogInVuc2xvdGgiCiAgfSwKICAiZGF0YSI6IHsKICAgICJ0cmFpbiI6IFsKICAgICAgewogICAgICAgICJzb3VyY2UiOiAiaGY6Ly9kYXRhc2V0cy9tbGFib25uZS9GaW5lVG9tZS0xMDBrIiwKICAgICAgICAiZm9ybWF0IjogInNoYXJlZ3B0IiwKICAgICAgICAic3BsaXQiOiAidHJhaW4iCiAgICAgIH0KICAgIF0sCiAgICAiY2hhdF90ZW1wbGF0ZSI6ICJjaGF0bWwiLAogICAgInRyYWluX29uIjogImFsbCIsCiAgICAicGFja2luZyI6IHRydWUKICB9LAogICJsb3JhIjogewogICAgInIiOiAxNiwKICAgICJhbHBoYSI6IDE2LAogICAgImRyb3BvdXQiOiAwLjAsCiAgICAidGFyZ2V0cyI6IFsKICAgICAgInFfcHJvaiIsCiAgICAgICJrX3Byb2oiLAogICAgICAidl9wcm9qIiwKICAgICAgInVwX3Byb2oiLAogICAgICAiZG93bl9wcm9qIiwKICAgICAgIm9fcHJvaiIsCiAgICAgICJnYXRlX3Byb2oiCiAgICBdLAogICAgInJzbG9yYSI6IHRydWUsCiAgICAiYmlhcyI6ICJub25lIiwKICAgICJzZWVkIjogMzQwNwogIH0sCiAgInRyYWluaW5nIjogewogICAgImVwb2NocyI6IDEsCiAgICAiYmF0Y2hfc2l6ZSI6IDgsCiAgICAiZ3JhZGllbnRfYWNjdW11bGF0aW9uX3N0ZXBzIjogMiwKICAgICJsZWFybmluZ19yYXRlIjogMC4wMDAzLAogICAgImxyX3NjaGVkdWxlciI6ICJsaW5lYXIiLAogICAgIndhcm11cF9zdGVwcyI6IDEwLAogICAgIm9wdGltaXplciI6ICJhZGFtd184Yml0IiwKICAgICJ3ZWlnaHRfZGVjYXkiOiAwLjAxLAogICAgInNlZWQiOiAwLAogICAgImxvZ2dpbmdfc3RlcHMiOiAxLAogICAgImdyYWRpZW50X2NoZWNrcG9pbnRpbmciOiAidW5zbG90aCIKICB9LAogICJldmFsdWF0aW9uIjogewogICAgInByb21wdHMiOiBbCiAgICAgICJJcyA5LjExIGxhcmdlciB0aGFuIDkuOT8iCiAgICBdLAogICAgIm1heF9uZXdfdG9rZW5zIjogMTI4CiAgfSwKICAiZXhwb3J0IjogewogICAgIm1lcmdlZCI6IFsKICAgICAgIjE2Yml0IgogICAgXSwKICAgICJnZ3VmIjogWwogICAgICAicTJfayIsCiAgICAgICJxM19rX20iLAogICAgICAicTRfa19tIiwKICAgICAgInE1X2tfbSIsCiAgICAgICJxNl9rIiwKICAgICAgInE4XzAiCiAgICBdCiAgfSwKICAib3V0cHV0IjogewogICAgInVyaSI6ICJzMzovL21vZGVscy9maW5ldG9tZS1sbGFtYTMxLThiIgogIH0KfQo='
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN HF_TOKEN AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_REQUEST_CHECKSUM_CALCULATION AWS_RESPONSE_CHECKSUM_VALIDATION TUNEJOB_S3_ADDRESSING TUNEJOB_CHECKPOINTS HF_ENDPOINT; do
  [ -z "$(printenv "$name")" ] || environment="$environment -e $name=$(printenv "$name")"
done
vastai create instance "$offer" --image ghcr.io/tunejob/tunejob:0.1.0 --label finetome-llama31-8b-4a7f87a74f --disk 133 \
  --env "$environment" --entrypoint /bin/sh --args -c 'printf %s "$TUNEJOB_SPEC" | base64 -d > /tmp/spec.json
tries=0
while :; do
  /opt/tunejob/bin/tunejob run /tmp/spec.json & job=$!
  trap "kill -TERM $job" TERM
  code=0; wait $job || code=$?
  if [ $code -gt 128 ] && kill -0 $job 2>/dev/null; then code=0; wait $job || code=$?; fi
  case $code in 0|10|11|12|13|14|30) break;; esac
  [ $tries -lt 2 ] || break
  tries=$((tries + 1))
done
[ $code = 30 ] || /opt/tunejob/bin/python -c '"'"'import os, urllib.request as web; web.urlopen(web.Request("https://console.vast.ai/api/v0/instances/%s/" % os.environ["CONTAINER_ID"], method="DELETE", headers={"Authorization": "Bearer " + os.environ["CONTAINER_API_KEY"]}))'"'"'
exit $code
'
