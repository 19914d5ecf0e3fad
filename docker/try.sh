#!/usr/bin/env bash
# The steps of Dockerfile.cpu where no engine can build it: as root, in a clean Debian root, then a run of a few steps in it.
#
#   debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm ROOT
#   docker/try.sh ROOT
#
# What pip must know of your network (pip.conf, certificates, local wheels) belongs into ROOT before.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(realpath "$1")
mkdir -p "$root/rlopt"
git archive HEAD | tar -x -C "$root/rlopt"
{
  echo "set -euxo pipefail; cd /rlopt"
  sed -n 's/^RUN //p' docker/Dockerfile.cpu
  echo 'PATH=/rlopt/.venv/bin:$PATH'
  echo "python -m rlopt.train +algo=grpo trainer.total_steps=3 sync.interval=1 tracking.wandb=disabled"
} >"$root/steps.sh"
unshare --mount bash -euc '
  mount --bind /proc "$1/proc"; mount --bind /sys "$1/sys"; mount --rbind /dev "$1/dev"
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$1" bash /steps.sh' _ "$root"
