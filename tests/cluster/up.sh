#!/usr/bin/env bash
# A real SLURM on one bare Debian machine, for tests: two nodes with two GPUs each (device files that compute nothing),
# accounting, preemption between the partitions low and high. Run as root; does nothing where it is up already.
# Everything lives in one folder, ABLORA_SLURM (default /run/ablora-slurm); `down.sh` beside this file ends it.
# A SLURM that the machine has of its own is left alone: other ports, sockets and files.
#   export SLURM_CONF=/run/ablora-slurm/slurm.conf     makes sbatch, squeue, ... talk to it
set -euo pipefail
home=${ABLORA_SLURM:-/run/ablora-slurm}
export SLURM_CONF=$home/slurm.conf

if [ "$(id -u)" != 0 ]; then
    timeout 5 scontrol ping > /dev/null 2>&1 && echo "a SLURM is up: export SLURM_CONF=$SLURM_CONF" && exit 0
    echo "a cluster is started by root: sudo $0" >&2
    exit 1
fi
for program in slurmctld slurmd slurmdbd sacct munged mariadbd; do
    command -v "$program" > /dev/null && continue
    if ! command -v apt-get > /dev/null; then
        echo "no $program and no apt-get here: install slurm, slurmdbd, munge and mariadb yourself" >&2
        exit 1
    fi
    apt-get update --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
        slurm-wlm slurmdbd munge mariadb-server
    break
done

runs() { [ -s "$home/$1.pid" ] && kill -0 "$(cat "$home/$1.pid")" 2> /dev/null; }

wait_for() { # SECONDS COMMAND...: until the command succeeds
    local left=$(($1 * 10))
    shift
    until timeout 5 "$@" > "$home/log/wait" 2>&1; do
        left=$((left - 1))
        if [ $left -le 0 ]; then
            echo "gave up waiting for: $*" >&2
            cat "$home/log/wait" >&2
            tail -n 20 "$home"/log/*.log >&2
            exit 1
        fi
        sleep 0.1
    done
}


# What SLURM leaves of a job that was killed with its node: the next one of that number cannot raise its memory in there,
# is not executed ("task_p_pre_setuid functions returned error"), and its node is taken out of use. A new cluster counts
# from one. A group with a living process stays.
for node in node1 node2; do
    runs "slurmd-$node" || find /sys/fs/cgroup/memory/slurm_$node -depth -type d -exec rmdir {} + 2> /dev/null || true
done

mkdir -p "$home"/{log,state,spool,db,gpu}
chmod 755 "$home"
[ -s "$home/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom > "$home/munge.key")
[ -s "$home/db.secret" ] || (umask 077 && head -c 24 /dev/urandom | base64 | tr -d '/+=\n' > "$home/db.secret")
for i in 0 1 2 3; do
    [ -e "$home/gpu/$i" ] || mknod "$home/gpu/$i" c 1 3
done

# A job over its memory is ended by the kernel, and SLURM then says OUT_OF_MEMORY, where cgroups (version 1) may be made.
tasks=task/none overmemory=JobAcctGatherParams=OverMemoryKill
if mkdir "/sys/fs/cgroup/memory/ablora-$$" 2> /dev/null; then
    rmdir "/sys/fs/cgroup/memory/ablora-$$"
    tasks=task/cgroup overmemory= # the two together are refused
fi
cat > "$home/cgroup.conf" << END
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
END
cat > "$home/slurm.conf" << END
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=17017
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge.socket
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool/%n
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd-%n.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=$tasks
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MaxArraySize=8
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=600
# Without cgroups memory is looked at once a second, and a job over its own is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
$overmemory
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=17019
AccountingStoragePass=$home/munge.socket
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=low Nodes=node[1-2] Default=YES MaxTime=60 PriorityTier=1 GraceTime=10
PartitionName=high Nodes=node[1-2] MaxTime=60 PriorityTier=10 PreemptMode=OFF
END
cat > "$home/gres.conf" << END
NodeName=node1 Name=gpu File=$home/gpu/[0-1]
NodeName=node2 Name=gpu File=$home/gpu/[2-3]
END
(umask 077 && cat > "$home/slurmdbd.conf" << END
AuthType=auth/munge
AuthInfo=socket=$home/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=17019
SlurmUser=root
PidFile=$home/slurmdbd.pid
LogFile=$home/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=17306
StorageLoc=slurm_acct_db
StorageUser=slurm
StoragePass=$(cat "$home/db.secret")
END
)

if ! runs munged; then
    rm -f "$home/munge.socket"
    munged --force --key-file "$home/munge.key" --socket "$home/munge.socket" --pid-file "$home/munged.pid" \
        --log-file "$home/log/munged.log" --seed-file "$home/munge.seed"
    wait_for 10 sh -c "munge --no-input --socket '$home/munge.socket' | unmunge --socket '$home/munge.socket'"
fi

sql() { mariadb --no-defaults --user=root --socket="$home/db.socket" "$@"; }
if ! runs mariadbd; then
    [ -d "$home/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$home/db" --skip-test-db \
        --auth-root-authentication-method=socket > "$home/log/mariadb-install.log" 2>&1
    # No care for a power cut: these are tests, and its syncing to disk took most of the time.
    setsid mariadbd --no-defaults --user=root --datadir="$home/db" --socket="$home/db.socket" --port=17306 \
        --bind-address=127.0.0.1 --pid-file="$home/mariadbd.pid" --innodb-flush-log-at-trx-commit=0 \
        --innodb-buffer-pool-size=64M > "$home/log/mariadbd.log" 2>&1 < /dev/null &
    wait_for 60 mariadb --no-defaults --user=root --socket="$home/db.socket" --execute "select 1"
    sql --execute "create database if not exists slurm_acct_db;
        create or replace user slurm@'127.0.0.1' identified by '$(cat "$home/db.secret")';
        create or replace user slurm@localhost identified by '$(cat "$home/db.secret")';
        grant all on slurm_acct_db.* to slurm@'127.0.0.1', slurm@localhost;"
fi

if ! runs slurmdbd; then
    slurmdbd
    wait_for 60 sacctmgr --noheader list cluster
    sacctmgr --immediate --quiet add cluster lab > /dev/null 2>&1 || true # it is there
fi
runs slurmctld || slurmctld > "$home/log/slurmctld.out" 2>&1
wait_for 30 scontrol ping
for node in node1 node2; do
    runs "slurmd-$node" || slurmd -N "$node" > "$home/log/slurmd-$node.out" 2>&1
done
# A busy machine must not let a node look dead for want of a turn (SlurmdTimeout); not every kernel has these groups.
for pid in "$home"/*.pid; do
    { echo -10 > "/proc/$(cat "$pid")/autogroup"; } 2> /dev/null || true
done
wait_for 60 sh -c 'test "$(sinfo --noheader --Node --partition low --format %t | grep -c -E "idle|mix|alloc")" = 2'
echo "a SLURM with two nodes is up: export SLURM_CONF=$SLURM_CONF"
