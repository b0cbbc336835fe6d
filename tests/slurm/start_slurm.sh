#!/usr/bin/env bash
# A real Slurm of five hosts on this machine: start_slurm.sh start|stop BASE, as root. SLURM_CONF=BASE/slurm.conf reaches it.
#
# Each host is a process with namespaces of its own for network, host name, mounts and processes: what runs on a host ends
# with it, a process id of one means nothing on another, and all share the file system. Nothing outside of BASE is written
# (the hosts have an /etc/hosts of their own), and any number of these clusters run side by side.
set -euo pipefail
[[ "${1:-}" =~ ^(start|stop)$ && "${2:-}" == /* ]] || { sed -n 2p "$0"; exit 2; }
BASE=$2
export SLURM_CONF=$BASE/slurm.conf
NODES=(n1 n2 n3)

host() { cat "$BASE/hosts.d/$1/pid"; }                # process id of a host
on() { nsenter --all --target "$(host "$1")" -- "${@:2}"; }
until_true() {                                        # until_true SECONDS COMMAND...
    local deadline=$((SECONDS + $1))
    until "${@:2}" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { echo "Not within $1 s: ${*:2}" >&2; exit 1; }
        sleep 0.1
    done
}

stop() {
    local pids=() bridge
    [[ -d $BASE ]] || return 0
    bridge=$(cat "$BASE/bridge" 2>/dev/null || true)
    for file in "$BASE"/hosts.d/*/pid "$BASE/munged.pid"; do
        [[ -s $file ]] && pids+=("$(cat "$file")")
    done
    # The first process of a process namespace takes all others of it along.
    ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null || true
    for pid in "${pids[@]}"; do
        while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
    done
    if [[ -n $bridge ]]; then
        # The network of a namespace goes a moment after its last process.
        for _ in {1..100}; do
            [[ -n $(ip -o link show master "$bridge" 2>/dev/null) ]] || break
            sleep 0.05
        done
        ip link del "$bridge" 2>/dev/null || true
    fi
    rm -rf "$BASE"
}

add_host() {                                          # add_host NAME LAST: at $NET.LAST, on the bridge
    local folder=$BASE/hosts.d/$1 link="$BRIDGE-$1"
    mkdir -p "$folder"
    # The loop is the host's init: it takes in the orphans. A slave's mounts stay its own.
    setsid unshare --net --uts --ipc --mount --pid --fork --mount-proc bash -c '
        hostname "$0"; mount --bind "$1" /etc/hosts; while sleep 3600; do :; done' "$1" "$BASE/hosts" \
        </dev/null >/dev/null 2>"$BASE/log/$1.log" &
    until_true 5 pgrep --parent $! -f "bash -c"
    pgrep --parent $! >"$folder/pid"
    ip link add "$link" type veth peer name eth0 netns "$(host "$1")"
    ip link set "$link" master "$BRIDGE" up
    on "$1" sh -c "ip link set lo up; ip link set eth0 up; ip addr add $NET.$2/24 dev eth0
                   ip route add default via $NET.254"
    until_true 5 on "$1" sh -c '[ "$(hostname)" = "$0" ] && grep -q " $0\$" /etc/hosts' "$1"
}

start_network() {
    # The first bridge that nobody has: making it is what takes its number.
    for number in $(shuf -i 16-250); do
        BRIDGE=mx$number NET=10.77.$number
        ip link add "$BRIDGE" type bridge 2>/dev/null && break
    done
    echo "$BRIDGE" >"$BASE/bridge"
    ip addr add "$NET.254/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    { echo "127.0.0.1 localhost"; printf "$NET.%s %s\n" 253 ctl 1 n1 2 n2 3 n3; } >"$BASE/hosts"
    add_host ctl 253
    for index in "${!NODES[@]}"; do add_host "${NODES[$index]}" $((index + 1)); done
}

start_munge() {
    head -c 1024 /dev/urandom >"$BASE/munge.key"
    chmod 400 "$BASE/munge.key"
    munged --force --key-file="$BASE/munge.key" --socket="$BASE/munge" --pid-file="$BASE/munged.pid" \
        --log-file="$BASE/log/munged.log" --seed-file="$BASE/munge.seed" 2>/dev/null
}

# Accounting: without it nobody hears of a job that was cancelled or failed once squeue has forgotten it.
start_accounting() {
    # Nothing has to survive a crash.
    local fast=(--user=root --datadir="$BASE/mysql" --innodb-flush-method=nosync --innodb-flush-log-at-trx-commit=0
        --innodb-buffer-pool-size=64M --innodb-log-file-size=16M)
    # It wants its host to have an address.
    on ctl mariadb-install-db --no-defaults "${fast[@]}" --skip-test-db --auth-root-authentication-method=socket \
        >"$BASE/log/install.log" 2>&1
    on ctl sh -c 'exec "$@" </dev/null >"$0" 2>&1 &' "$BASE/log/mariadbd.log" mariadbd --no-defaults "${fast[@]}" \
        --bind-address=127.0.0.1 --socket="$BASE/mysql.sock" --innodb-lock-wait-timeout=900 --performance-schema=OFF
    until_true 30 mariadb -S "$BASE/mysql.sock" -e "select 1"
    mariadb -S "$BASE/mysql.sock" -e "create database slurm_acct_db;
        create user slurm@localhost identified by 'slurm'; grant all on slurm_acct_db.* to slurm@localhost;"
    cat >"$BASE/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$BASE/munge
DbdHost=ctl
DbdAddr=$NET.253
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=slurm
StoragePass=slurm
PidFile=$BASE/slurmdbd.pid
LogFile=$BASE/log/slurmdbd.log
CommunicationParameters=NoInAddrAny
END
    chmod 600 "$BASE/slurmdbd.conf"
    on ctl slurmdbd
    until_true 30 sacctmgr -n show cluster
    # Before slurmctld starts: it reads them then.
    {
        sacctmgr -iQ add cluster matrix
        sacctmgr -iQ add account research,other
        sacctmgr -iQ add user root account=research,other
        sacctmgr -iQ modify user root set DefaultAccount=research
    } >"$BASE/log/sacctmgr.log"
}

write_config() {
    mkdir "$BASE/state" "$BASE/gpus"
    # Twins of /dev/null: slurmd hands out the indices of devices (CUDA_VISIBLE_DEVICES).
    for index in {0..7}; do mknod "$BASE/gpus/nvidia$index" c 1 3; done
    cat >"$BASE/gres.conf" <<END
AutoDetect=off
NodeName=n[1-3] Name=gpu Type=h100 File=$BASE/gpus/nvidia[0-7]
NodeName=u1 Name=gpu File=$BASE/gpus/nvidia[0-1]
END
    cat >"$BASE/cgroup.conf" <<END
CgroupPlugin=cgroup/v1
CgroupAutomount=no
END
    cat >"$SLURM_CONF" <<END
ClusterName=matrix
SlurmctldHost=ctl($NET.253)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for its old credential to expire (else 120 s).
AuthInfo=socket=$BASE/munge,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$BASE/state
SlurmdSpoolDir=$BASE/spool.%n
SlurmctldPidFile=$BASE/slurmctld.pid
SlurmdPidFile=$BASE/slurmd.%n.pid
SlurmctldLogFile=$BASE/log/slurmctld.log
SlurmdLogFile=$BASE/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=50000,bf_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
MinJobAge=600
KillWait=5
JobRequeue=1
PropagateResourceLimits=NONE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$NET.253
AccountingStoragePass=$BASE/munge
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,qos
GresTypes=gpu
DefMemPerCPU=100
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeAddr=$NET.1 CPUs=8 RealMemory=8000 Gres=gpu:h100:8
NodeName=n2 NodeAddr=$NET.2 CPUs=8 RealMemory=8000 Gres=gpu:h100:8
NodeName=n3 NodeAddr=$NET.3 CPUs=8 RealMemory=8000 Gres=gpu:h100:8
# Only to be asked about: they have no host.
NodeName=c1 NodeAddr=$NET.11 CPUs=16 RealMemory=16000 State=DOWN Reason="no host"
NodeName=u1 NodeAddr=$NET.12 CPUs=8 RealMemory=8000 Gres=gpu:2 State=DOWN Reason="no host"
PartitionName=DEFAULT Nodes=n[1-3] MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=main Default=YES
PartitionName=limited MaxTime=1:00:00
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high PriorityTier=10
PartitionName=cpu Nodes=c1
PartitionName=untyped Nodes=u1
END
}

start_slurm() {
    on ctl slurmctld
    for node in "${NODES[@]}"; do
        mkdir "$BASE/spool.$node"
        on "$node" slurmd -N "$node"
    done
    until_true 30 all_idle
}
all_idle() { [[ $(sinfo -h -N -p main -o %T | grep -c "^idle$") == "${#NODES[@]}" ]]; }

[[ $1 == start ]] || { stop; exit 0; }
mkdir -p "$BASE/log"
trap '(($? == 0)) || { tail -n 20 "$BASE"/log/*.log >&2; stop; }' EXIT
start_network
write_config
start_munge
start_accounting
start_slurm
