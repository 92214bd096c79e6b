#!/usr/bin/env bash
# Ends the cluster that up.sh started: its jobs, its daemons by their pid files, and its folder. Nothing else.
set -euo pipefail
home=${ABLORA_SLURM:-/run/ablora-slurm}
export SLURM_CONF=$home/slurm.conf
[ -f "$SLURM_CONF" ] || exit 0

pid_of() { cat "$home/$1.pid" 2> /dev/null || true; }

# A job's step is a process of its own: it is ended by its node's daemon, so that one must still be there.
if scancel --full --user "$(id -un)" 2> /dev/null; then
    for _ in $(seq 100); do
        [ -z "$(squeue --noheader 2> /dev/null)" ] && break
        sleep 0.1
    done
fi
for daemon in slurmd-node1 slurmd-node2 slurmctld slurmdbd mariadbd munged; do
    pid=$(pid_of $daemon)
    # A pid file outlives a machine's boot; what has the number now must be the program itself.
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2> /dev/null || true)" = "${daemon%%-node*}" ] || continue
    kill "$pid"
    for _ in $(seq 100); do
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.1
    done
done
rm -rf "$home"
