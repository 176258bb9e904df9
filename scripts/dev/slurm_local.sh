#!/usr/bin/env bash
# A SLURM of one node on the loopback, for the time of one command: slurm_local.sh COMMAND [ARGUMENTS]
# Needs root and Debian's packages slurm-wlm and munge. Everything lies in a folder of its own, which is removed at the
# end; what was started is ended by its process id. Exit status 77: there can be no SLURM here; the reason is said.
set -euo pipefail
for program in munged slurmctld slurmd sbatch; do
  command -v "$program" > /dev/null || { echo "$program is missing: apt-get install slurm-wlm munge" >&2; exit 77; }
done
folder=$(mktemp -d /tmp/slurm.XXXXXX)
chmod 755 "$folder"
host=$(hostname -s)
started=()
finish() {
  status=$?
  if [ "$status" -ne 0 ]; then tail -n 20 "$folder"/*.log >&2 || true; fi
  for process in "${started[@]}"; do kill "$process" 2> /dev/null || true; done
  for process in "${started[@]}"; do wait "$process" 2> /dev/null || true; done
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT

# Two ports that nobody listens on, so that several may run at once; below those that the system hands out by itself.
listens() { (: < "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }
port=$((20000 + RANDOM % 12000))
while listens "$port" || listens "$((port + 1))"; do port=$((20000 + RANDOM % 12000)); done

head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --foreground --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" \
  --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" --seed-file "$folder/munge.seed" \
  2> "$folder/munged-start.log" &
started+=($!)

mkdir "$folder/state" "$folder/spool"
cat > "$folder/slurm.conf" << END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
MinJobAge=600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"
for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break; sleep 0.1; done
slurmctld -D -i -L "$folder/slurmctld.log" 2> /dev/null &
started+=($!)
slurmd -D -N "$host" -L "$folder/slurmd.log" 2> /dev/null &
started+=($!)
for _ in $(seq 100); do [ "$(sinfo --noheader --format %t 2> /dev/null)" = idle ] && break; sleep 0.2; done
if [ "$(sinfo --noheader --format %t)" != idle ]; then
  echo "the node did not become idle: $(sinfo --noheader --format '%t %E' 2>&1)" >&2
  exit 77
fi
"$@"
