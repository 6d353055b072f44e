#!/usr/bin/env bash
# A SLURM cluster of four nodes on this one machine: real controller, node daemons and accounting, simulated hardware.
#   cluster.sh up | down | status | env
#   cluster.sh kill-node n2 | start-node n2 | stop-ctld | start-ctld | stop-dbd | start-dbd
# All files are in $LANGPTUNE_LAB (default: .slurmlab in the repository). The script does not change /etc/slurm and needs
# no systemd. Ports start at $LANGPTUNE_LAB_PORT (default 16800).
set -euo pipefail

REPO=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
LAB=$(realpath -m "${LANGPTUNE_LAB:-$REPO/.slurmlab}")
PORT=${LANGPTUNE_LAB_PORT:-16800}
NODES=(n1 n2 n3 n4)
GPUS=2 CPUS=4 MEM_MB=8000
ACCOUNT=lab
PACKAGES="munge slurmctld slurmd slurmdbd slurm-client mariadb-server-core mariadb-client-core"
COMMANDS=(sbatch srun squeue sacct sacctmgr scancel scontrol sinfo)
export SLURM_CONF=$LAB/etc/slurm.conf
# The wrappers of an earlier `up` must not be mistaken for the real commands.
PATH=$(tr ':' '\n' <<<"$PATH" | grep -vxF "$LAB/bin" | paste -sd:):/usr/sbin:/sbin

SQL_PORT=$((PORT + 1)) DBD_PORT=$((PORT + 2)) CTLD_PORT=$((PORT + 3)) NODE_PORT=$((PORT + 10))
SQL_SOCKET=$LAB/run/mariadb.sock
MUNGE_SOCKET=$LAB/run/munge.sock

die() {
  echo "error: $*" >&2
  exit 2
}

check() {
  local missing=() tool
  for tool in munged mariadbd mariadb mariadb-install-db slurmctld slurmd slurmdbd "${COMMANDS[@]}"; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  [ ${#missing[@]} = 0 ] ||
    die "not installed: ${missing[*]}; on Debian: apt-get install $PACKAGES"
  [ "$(id -u)" = 0 ] || die "the test cluster needs root: it makes device files and starts jobs for users"
  # Paths of sockets in this folder have at most 107 bytes, and SLURM's files have no quoting.
  if [ ${#LAB} -gt 70 ] || [[ $LAB == *[[:space:]]* ]]; then
    die "the folder's name is too long or has spaces; set LANGPTUNE_LAB to another folder: $LAB"
  fi
}

# The process id in a file, or nothing if the process has ended. An id that another program has reused does not count.
pid_of() {
  local pid
  pid=$(cat "$LAB/run/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && grep -qaF "$LAB" "/proc/$pid/cmdline" "/proc/$pid/environ" 2>/dev/null && echo "$pid"
}

alive() { pid_of "$1" >/dev/null; }

wait_for() {
  local seconds=$1 end
  shift
  end=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || die "no success within $seconds seconds: $*; logs are in $LAB/log"
    sleep 0.1
  done
}

# Otherwise a foreign program on a port could be mistaken for this cluster's daemon, or the only message would be that a
# daemon did not start.
ports_free() {
  local daemon ports=("$SQL_PORT:mariadb" "$DBD_PORT:slurmdbd" "$CTLD_PORT:slurmctld" "$NODE_PORT:${NODES[0]}")
  for daemon in "${ports[@]}"; do
    alive "${daemon#*:}" || ! (exec 3<>"/dev/tcp/127.0.0.1/${daemon%:*}") 2>/dev/null ||
      die "port ${daemon%:*} is in use, perhaps by another cluster; set LANGPTUNE_LAB_PORT"
  done
}

stop() {
  local pid
  if pid=$(pid_of "$1"); then
    kill "$pid"
    for _ in {1..150}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null && echo "warning: $1 did not stop by itself" >&2
  fi
  rm -f "$LAB/run/$1.pid"
}

known_node() {
  local node
  for node in "${NODES[@]}"; do [ "$node" != "${1:-}" ] || return 0; done
  die "no such node: '${1:-}'; the nodes are ${NODES[*]}"
}

# Configuration

configure() {
  local host node gpu nodes at
  # A SLURM daemon accepts a name as its own only if it is the host's name.
  host=$(hostname -s)
  nodes=$(IFS=,; echo "${NODES[*]}")
  mkdir -p "$LAB"/{bin,dev,etc,log,run,state,sql}
  # munged refuses folders that others can write to; jobs of any user must be able to read the configuration.
  chmod 755 "$LAB" "$LAB"/{bin,dev,etc,log,run}
  for node in "${NODES[@]}"; do mkdir -p "$LAB/spool/$node"; done
  # Jobs get CUDA_VISIBLE_DEVICES only for GPUs that are character devices: each is a copy of /dev/null.
  for ((gpu = 0; gpu < GPUS; gpu++)); do [ -c "$LAB/dev/gpu$gpu" ] || mknod "$LAB/dev/gpu$gpu" c 1 3; done
  echo "NodeName=$nodes Name=gpu File=$LAB/dev/gpu[0-$((GPUS - 1))]" >"$LAB/etc/gres.conf"
  echo "# No cgroups, but slurmd requires this file." >"$LAB/etc/cgroup.conf"
  {
    cat <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$CTLD_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$MUNGE_SOCKET
CredType=cred/munge
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmdPidFile=$LAB/run/%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/%n.log
MpiDefault=none
SwitchType=switch/none
# Several nodes on one host, which together have more hardware than the host.
SlurmdParameters=config_overrides
ReturnToService=2
# Containers have no cgroups. Processes are tracked by process group: if they were tracked by parent, a process whose
# shell has ended would be lost and outlive SIGKILL. Memory is sampled.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
# Tests wait for every scheduling decision, so it must come within seconds.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=20
MessageTimeout=10
InactiveLimit=0
# A job may write its checkpoint between SIGTERM and SIGKILL.
KillWait=15
OverTimeLimit=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PropagateResourceLimitsExcept=MEMLOCK
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$DBD_PORT
AccountingStoragePass=$MUNGE_SOCKET
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
# As on most clusters, a job under an unknown account is refused.
AccountingStorageEnforce=associations
NodeName=DEFAULT CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM_MB Gres=gpu:$GPUS State=UNKNOWN
CONF
    at=$NODE_PORT
    for node in "${NODES[@]}"; do echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((at++))"; done
    cat <<CONF
PartitionName=DEFAULT Nodes=$nodes DefaultTime=10 MaxTime=2-00:00:00 DefMemPerCPU=100 State=UP PreemptMode=OFF PriorityTier=1
PartitionName=cpu Default=YES
PartitionName=gpu
PartitionName=low PreemptMode=REQUEUE GraceTime=10
PartitionName=high PriorityTier=2
CONF
  } >"$LAB/etc/slurm.conf"
  (
    umask 077 # slurmdbd refuses a file with its password that others can read
    cat >"$LAB/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$MUNGE_SOCKET
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$DBD_PORT
SlurmUser=root
LogFile=$LAB/log/slurmdbd.log
PidFile=$LAB/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$SQL_PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
    [ -s "$LAB/etc/munge.key" ] || head -c 1024 /dev/urandom >"$LAB/etc/munge.key"
  )
  wrap
  site
}

# Snakemake's executor inside a job removes SLURM_* from the environment, including SLURM_CONF. On a real cluster every
# command finds the configuration in its default place; here the commands in PATH set SLURM_CONF.
wrap() {
  local real tool
  for tool in "${COMMANDS[@]}"; do
    real=$(command -v "$tool")
    rm -f "$LAB/bin/$tool"
    printf '#!/bin/sh\nexport SLURM_CONF=%s; exec %s "$@"\n' "$SLURM_CONF" "$real" >"$LAB/bin/$tool"
    chmod 755 "$LAB/bin/$tool"
  done
}

# The values that a user of this cluster would write to slurm/cluster.yaml.
site() {
  cat >"$LAB/etc/cluster.yaml" <<SITE
account: $ACCOUNT
partition: {cpu: cpu, gpu: gpu}
cpus_per_gpu: 1
limits: {hours: 24, memory_mb: $MEM_MB}
SITE
}

# Daemons

start_munge() {
  alive munged || munged --key-file="$LAB/etc/munge.key" --socket="$MUNGE_SOCKET" --pid-file="$LAB/run/munged.pid" \
    --log-file="$LAB/log/munged.log" --seed-file="$LAB/run/munged.seed"
}

sql() { mariadb --no-defaults -uroot --socket="$SQL_SOCKET" "$@"; }

start_sql() {
  alive mariadb && return
  # The database runs as root, because its own user may not be able to enter the parent folders.
  if [ ! -d "$LAB/sql/mysql" ]; then
    # No --user here: it would change the owner of files that the package installed.
    mariadb-install-db --no-defaults --datadir="$LAB/sql" --skip-test-db --auth-root-authentication-method=normal \
      --innodb-log-file-size=16M >"$LAB/log/mariadb-install.log" 2>&1 ||
      die "the database could not be created; see $LAB/log/mariadb-install.log"
  fi
  # With a shorter wait for locks, slurmdbd warns and is slow. No flush at commit: these records may be lost in a power cut.
  setsid mariadbd --no-defaults --user=root --datadir="$LAB/sql" --socket="$SQL_SOCKET" --bind-address=127.0.0.1 \
    --port="$SQL_PORT" --pid-file="$LAB/run/mariadb.pid" --skip-name-resolve --innodb-buffer-pool-size=64M \
    --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 \
    --log-error="$LAB/log/mariadb.log" </dev/null >/dev/null 2>&1 &
  wait_for 30 sql -e "select 1"
  sql -e "create database if not exists slurm_acct_db; create user if not exists 'slurm'@'127.0.0.1' identified by
    'slurm'; grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1'"
}

start_dbd() {
  alive slurmdbd || slurmdbd
  wait_for 30 sacctmgr -n list cluster
}

add_account() {
  local known
  known=$(sacctmgr -nP list assoc cluster=lab format=account,user)
  grep -qx "$ACCOUNT|root" <<<"$known" && return
  # Each of them may already exist after an interrupted `up`, which is not an error.
  sacctmgr -i add cluster lab >/dev/null || true
  sacctmgr -i add account "$ACCOUNT" cluster=lab >/dev/null || true
  sacctmgr -i add user root account="$ACCOUNT" >/dev/null || true
  known=$(sacctmgr -nP list assoc cluster=lab format=account,user)
  grep -qx "$ACCOUNT|root" <<<"$known" || die "no account for root; see $LAB/log/slurmdbd.log"
}

start_ctld() {
  alive slurmctld || slurmctld "$@"
  wait_for 30 controller_up
}

controller_up() { scontrol ping | grep -q UP; }

start_node() { alive "$1" || slurmd -N "$1"; }

node_usable() { sinfo -h -N -n "$1" -p cpu -t idle,alloc,mix,comp -o %N | grep -qx "$1"; }

# All processes of a node's jobs. Every step has a slurmstepd that listens on a socket in the node's folder, and the
# processes that it started have the node's name in their environment. Names and job numbers are not unique, because
# several nodes and clusters share this machine's process table. Parents are not enough either: a process whose shell has
# ended has lost its parent.
processes_of() {
  local sockets pid
  sockets=$(awk -v folder="$LAB/spool/$1/" 'index($8, folder) == 1 { print "socket:[" $7 "]" }' /proc/net/unix)
  for pid in $([ -z "$sockets" ] || pgrep -x slurmstepd); do
    ! find "/proc/$pid/fd" -type l -printf '%l\n' 2>/dev/null | grep -qxF "$sockets" || echo "$pid"
  done
  { grep -lzxF "SLURMD_NODENAME=$1" /proc/[0-9]*/environ | xargs -r grep -laF "$LAB"; } 2>/dev/null | cut -d/ -f3 || true # processes end while they are read
}

# Like a power cut: no process on the node can clean up or send a message.
kill_node() {
  local pid pids
  if pid=$(pid_of "$1"); then kill -KILL "$pid"; fi
  rm -f "$LAB/run/$1.pid"
  # Repeated, because processes may have been started meanwhile.
  while pids=$(processes_of "$1") && [ -n "$pids" ]; do
    # shellcheck disable=SC2086 # one word per process
    kill -KILL $pids 2>/dev/null || true
    sleep 0.1
  done
}

up() {
  local node fresh=-c
  check
  # If no node is up, the jobs of an earlier cluster have ended, but the controller would wait for them: start afresh.
  for node in "${NODES[@]}"; do ! alive "$node" || fresh=; done
  [ -n "$fresh" ] || [ -f "$SLURM_CONF" ] || die "nodes are up, but $SLURM_CONF is gone"
  if [ -n "$fresh" ]; then
    ports_free
    configure
  fi
  start_munge
  start_sql
  start_dbd
  add_account
  start_ctld $fresh
  for node in "${NODES[@]}"; do start_node "$node"; done
  for node in "${NODES[@]}"; do wait_for 30 node_usable "$node"; done
}

down() {
  local node
  # Cancel jobs while the accounting is up, so that it keeps no job as running forever.
  if alive slurmctld && timeout 10 scancel --user=root 2>/dev/null; then
    for _ in {1..20}; do
      [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
      sleep 0.1
    done
  fi
  for node in "${NODES[@]}"; do
    kill_node "$node"
  done
  for daemon in slurmctld slurmdbd mariadb munged; do stop "$daemon"; done
}

status() {
  local daemon up=0
  for daemon in munged mariadb slurmdbd slurmctld "${NODES[@]}"; do
    if alive "$daemon"; then
      echo "$daemon up"
    else
      echo "$daemon down"
      up=1
    fi
  done
  ! alive slurmctld || timeout 15 sinfo -N -o "%N %P %t %c %m %G" || up=1
  return $up
}

case ${1:-} in
  up | down | status) "$1" ;;
  env)
    echo "export SLURM_CONF=$SLURM_CONF"
    echo "export PATH=$LAB/bin:\$PATH"
    echo "export LANGPTUNE_CLUSTER=$LAB/etc/cluster.yaml"
    ;;
  kill-node) known_node "${2:-}" && kill_node "$2" ;;
  start-node) known_node "${2:-}" && start_node "$2" && wait_for 40 node_usable "$2" ;;
  stop-ctld) stop slurmctld ;;
  start-ctld) start_ctld ;;
  stop-dbd) stop slurmdbd ;;
  start-dbd) start_dbd ;;
  *) die "usage: up | down | status | env | kill-node N | start-node N | stop-ctld | start-ctld | stop-dbd | start-dbd" ;;
esac
